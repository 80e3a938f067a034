"""The life of a server: listen, load, announce, watch, drain, end.

It listens before the model is loaded, so that probes get an answer (`/health` 200, `/ready` 503) instead of a refused
connection. It ends when it is told to, or with an error when the engine cannot be kept running.
"""

import asyncio
import logging
import os
import signal
import socket
import ssl
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from twofour.prune.errors import InputError, ServerError
from twofour.serve.edge.lifecycle import Lifecycle
from twofour.serve.engine.supervise import DEFAULT, Patience, keep_running
from twofour.serve.engine.types import Engine, EngineInfo
from twofour.serve.http import notify
from twofour.serve.http.acceptor import Acceptor
from twofour.serve.http.connections import TimelyProtocol
from twofour.serve.http.crowd import Crowd, connection_limit

MAX_HEAD_BYTES = 65536
FLUSH_S = 3  # for answers that are written but not yet sent

log = logging.getLogger(__name__)

Announce = Callable[[EngineInfo], None]


@dataclass(frozen=True)
class Tls:
    """PEM files. Raises InputError where they are not a certificate and its key."""

    certificate: Path
    key: Path | None = None  # None: in the certificate's file

    def __post_init__(self) -> None:
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(self.certificate, self.key, no_password)
        except (OSError, ValueError) as error:
            raise InputError(
                f"cannot use {self.certificate} for TLS: {error}; give PEM files without password"
            ) from error


def no_password() -> str:
    raise ValueError("the key has a password")


class QuietServer(uvicorn.Server):
    """uvicorn, with connections that are counted and timed, and without its signal handlers, which would cut streams
    off."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        config, state = self.config, self.server_state
        crowd = Crowd(connection_limit())

        def make() -> TimelyProtocol:
            return TimelyProtocol(crowd, config, state, {})

        acceptors: list[Any] = [Acceptor(listener, crowd, make, config.ssl) for listener in sockets or ()]
        self.servers = acceptors
        self.started = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Signals:
    """The first signal asks to finish, the second not to wait."""

    def __init__(self) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.receive)
        # When a terminal closes, SIGHUP asks to finish; else it asks to read the settings again, and there are none.
        loop.add_signal_handler(signal.SIGHUP, self.receive if os.isatty(0) else ignore_hangup)

    def receive(self) -> None:
        (self.second if self.first.is_set() else self.first).set()


def ignore_hangup() -> None:
    log.warning("SIGHUP is ignored: no setting is read again; restart the server to change one")


async def serve(
    app: ASGIApp,
    listener: socket.socket,
    engine: Engine,
    lifecycle: Lifecycle,
    drain_s: float,
    announce: Announce,
    patience: Patience = DEFAULT,
    tls: Tls | None = None,
    pre_drain_s: float = 0.0,
) -> None:
    signals = Signals()
    signals.install()
    server = QuietServer(http_config(app, tls))
    http = asyncio.create_task(server.serve(sockets=[listener]))

    def ready(info: EngineInfo) -> None:
        announce(info)
        notify.say(notify.READY)

    try:
        alive = notify.feed(lambda: not engine.stalled)
        await first_of(keep_running(engine, ready, patience), signals.first.wait(), http_end(http), alive)
        notify.say(notify.STOPPING)
        await first_of(lifecycle.drain(drain_s, pre_s=pre_drain_s), signals.second.wait())
    finally:
        lifecycle.expired.set()
        server.should_exit = True
        server.force_exit = signals.second.is_set()
        await http
        await engine.stop()


async def http_end(http: "asyncio.Task[None]") -> None:
    await asyncio.wait([http])
    raise ServerError("the HTTP server has ended; see the log")


async def first_of(*ways: Awaitable[object]) -> None:
    """Wait for one of them and cancel the others. An error of that one is raised."""
    tasks = [asyncio.ensure_future(way) for way in ways]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        ended = [task for task in tasks if task.done()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in ended:
        task.result()


def http_config(app: ASGIApp, tls: Tls | None = None) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        http=TimelyProtocol,
        ws="none",
        lifespan="off",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        ssl_certfile=tls.certificate if tls else None,
        ssl_keyfile=tls.key if tls else None,
        timeout_graceful_shutdown=FLUSH_S,
    )


def url_of(listener: socket.socket, tls: Tls | None = None) -> str:
    host, port = listener.getsockname()[:2]
    scheme = "https" if tls else "http"
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"
