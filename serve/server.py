"""The life of a server: listen, load, announce, watch, drain, end.

It listens before the model is loaded, so that probes get an answer (`/health` 200, `/ready` 503) instead of a
refused connection. It ends when it is told to, or with an error when the engine cannot be kept running.
"""

import asyncio
import logging
import os
import signal
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import uvicorn
from starlette.types import ASGIApp

from twofour.prune.errors import InputError, ServerError
from twofour.serve.connections import TimelyProtocol
from twofour.serve.edge.lifecycle import Lifecycle
from twofour.serve.engine.supervise import DEFAULT, Patience, keep_running
from twofour.serve.engine.types import Engine, EngineInfo

MAX_CONNECTIONS = 4096
MAX_HEAD_BYTES = 65536
LAST_WORDS_S = 3  # for answers that are written but not yet sent

log = logging.getLogger(__name__)

Announce = Callable[[EngineInfo], None]


class QuietServer(uvicorn.Server):
    """uvicorn, without the signal handlers that would end streams before their time."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Signals:
    """The first asks to finish, the second not to wait."""

    def __init__(self) -> None:
        self.first, self.second = asyncio.Event(), asyncio.Event()

    def install(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.receive)
        # A terminal that closes asks to finish; without one the signal asks to read settings again, and there are none.
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
) -> None:
    signals = Signals()
    signals.install()
    server = QuietServer(http_config(app))
    http = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await first_of(keep_running(engine, announce, patience), signals.first.wait(), http_end(http))
        await first_of(lifecycle.drain(drain_s), signals.second.wait())
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
    """Wait for one and give up the others. An error of the one is raised."""
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


def http_config(app: ASGIApp) -> uvicorn.Config:
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
        limit_concurrency=MAX_CONNECTIONS,
        timeout_graceful_shutdown=LAST_WORDS_S,
    )


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise InputError(f"cannot listen on {host} port {port}: {error.strerror}; choose another") from error
    # Connections inherit it; asyncio sets it only on sockets that name their protocol. Without it, every
    # answer waits 40 ms for the acknowledgement of its head.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def url_of(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
