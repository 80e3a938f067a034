"""The load client: one event loop, raw sockets, and while the clock runs no work that can wait until it has stopped.

A read is stored with its time, and only the framing is looked at, to find the end of a response; events and
JSON are decoded when the run is over. Requests are made into bytes before it starts, and the garbage
collector is off. `pace` says when each request leaves. Connections stay open from one load to the next, so that a
warm-up leaves them for the run.
"""

import asyncio
import gc
import json
import ssl
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from time import perf_counter
from typing import Any

from twofour.bench.load import decode, pace, wire, workload
from twofour.bench.load.access import OPEN, Access, tls_error
from twofour.bench.load.connection import Connection
from twofour.bench.load.decode import Exchange
from twofour.bench.load.pace import Job
from twofour.bench.load.records import Record, Request
from twofour.bench.load.service import Service
from twofour.bench.load.spool import Spool
from twofour.bench.load.watch import Look, Seen
from twofour.bench.load.workload import UNLIMITED, Limits
from twofour.serve.http.crowd import raise_open_files

TICK_S = 0.005


class Session:
    """Loads on one server, one after another."""

    def __init__(self, client: "Client", runner: asyncio.Runner, secrets: tuple[str, ...]) -> None:
        self._client = client
        self._runner = runner
        self._secrets = secrets

    def send(
        self,
        jobs: Sequence[Job],
        concurrency: int | None,
        lags: list[float] | None = None,
        on_end: Callable[[], None] | None = None,
        limits: Limits = UNLIMITED,
        look: Look | None = None,
    ) -> bool:
        """Drive a load to its end, by its requests or by its limits; what came of each request is in `records`.

        `lags` is filled with the lateness of the event loop in seconds, `on_end` is called after every request, `look`
        while the load runs, and may end it: then this returns False. An interrupt ends what is under way, and comes out
        of here as KeyboardInterrupt.
        """
        client, lags = self._client, [] if lags is None else lags
        client.on_end, client.seen = on_end, Seen()
        load = pace.drive(client.send, jobs, concurrency, limits)
        return self._runner.run(_observed(load, lags, partial(look, client.seen) if look else None))

    def records(self, jobs: Sequence[Job]) -> list[Record]:
        """Of those that were sent. The jobs give up what came: of a long load there is no room for both."""
        return [record for job in jobs if (record := recorded(job, self._secrets))]

    @property
    def seen(self) -> Seen:
        """What was done of the latest load."""
        return self._client.seen


@contextmanager
def connected(url: str, idle_s: float, access: Access = OPEN) -> Iterator[Session]:
    """A session for the length of a `with` block. idle_s: see Connection."""
    to = wire.target(url)
    spool = Spool()
    client = Client(to, idle_s, access.context() if to.tls else None, spool)
    raise_open_files()
    with no_garbage_collection(), asyncio.Runner(loop_factory=loop_factory()) as runner:
        try:
            yield Session(client, runner, access.secrets)
        finally:
            client.close()
            spool.close()


def recorded(job: Job, secrets: tuple[str, ...]) -> Record | None:
    """What came of a request, which the job gives up; None: it was not sent."""
    if job.exchange.done_at is None:
        return None
    record = decode.record(job.exchange, secrets)
    job.message, job.exchange = b"", Exchange(job.request.index)
    return record


def jobs(service: Service, requests: Sequence[Request], nonce: str) -> list[Job]:
    """The requests as bytes.

    Where the service is `plain`, with nothing that OpenAI's API does not have, so the model itself must not end an
    answer early.
    """
    to, fields = wire.target(service.url), service.access.fields()
    bodies = [json.dumps(_body(service, request, nonce)).encode() for request in requests]
    messages = [wire.post(to, service.path, body, fields) for body in bodies]
    return list(map(Job, requests, messages))


def _body(service: Service, request: Request, nonce: str) -> dict[str, Any]:
    body: dict[str, Any] = {
        "model": service.model,
        **_question(service, request, nonce),
        service.length_field: request.output_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if not service.plain:
        body |= {"min_tokens": request.output_tokens, "ignore_eos": True}
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    return {name: value for name, value in {**body, **service.body}.items() if value is not None}


def _question(service: Service, request: Request, nonce: str) -> dict[str, Any]:
    if service.api == "completions":
        return {"prompt": workload.marked(request, nonce)}
    return {"messages": [message._asdict() for message in workload.messages(request, nonce)]}


async def _observed(load: Coroutine[None, None, None], lags: list[float], look: Callable[[float], bool] | None) -> bool:
    """Drive a load, and note how late the loop is. False: `look` has ended it."""
    await asyncio.sleep(0)  # the loop hears of connections that were closed since the last load
    driving = asyncio.create_task(load)
    ticker = asyncio.create_task(_tick(lags, look, driving.cancel))
    try:
        await driving
        return True
    except asyncio.CancelledError:
        if ticker.done():
            return False
        raise
    finally:
        ticker.cancel()
        with suppress(asyncio.CancelledError):
            await ticker


async def _tick(lags: list[float], look: Callable[[float], bool] | None, end: Callable[[], bool]) -> None:
    while not (look and look(perf_counter())):
        due_at = perf_counter() + TICK_S
        await asyncio.sleep(TICK_S)
        lags.append(max(0.0, perf_counter() - due_at - pace.TIMER_S))
    end()


class Client:
    """The connections to one server. `send` gives every exchange its one ending; it raises nothing of its own."""

    def __init__(self, to: wire.Target, idle_s: float, tls: ssl.SSLContext | None, spool: Spool | None = None) -> None:
        self._to = to
        self._idle_s = idle_s
        self._tls = tls
        self._spool = spool
        self.on_end: Callable[[], None] | None = None
        self.seen = Seen()
        self._idle: list[Connection] = []

    async def send(self, job: Job) -> None:
        exchange = job.exchange
        self.seen.begin(exchange)
        try:
            await self._attempts(job)
        except asyncio.CancelledError:
            exchange.error = "cut off: the run was interrupted"
            raise
        except TimeoutError:
            exchange.error = f"timeout: nothing came for {self._idle_s:g} s"
        except wire.WireError as error:
            exchange.error = f"protocol: {error}"
        except ConnectionResetError as error:
            exchange.error = f"reset: {error}"
        except ssl.SSLError as error:
            exchange.error = f"TLS: {tls_error(error)}"
        except OSError as error:
            exchange.error = f"connect: {error}"
        finally:
            exchange.done_at = exchange.done_at or perf_counter()
            self.seen.end(exchange)
            if self._spool:
                exchange.spill(self._spool)
        if self.on_end:
            self.on_end()

    async def _attempts(self, job: Job) -> None:
        connection = self._reused()
        if connection:
            try:
                return await self._ask(connection, job)
            except ConnectionResetError:
                # The server may close an idle connection just as we use it: once more on a fresh one.
                if connection.heard:
                    raise
                job.exchange.reconnected = True
        await self._ask(await self._connect(job.exchange), job)

    async def _ask(self, connection: Connection, job: Job) -> None:
        try:
            await connection.ask(job.message, job.exchange)
        finally:
            if connection.reusable:
                self._idle.append(connection)
            else:
                connection.close()

    def _reused(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        return None

    async def _connect(self, exchange: Exchange) -> Connection:
        loop, exchange.connecting_at = asyncio.get_running_loop(), perf_counter()
        async with asyncio.timeout(self._idle_s):
            _, connection = await loop.create_connection(
                lambda: Connection(self._idle_s, self._spool), self._to.host, self._to.port, ssl=self._tls
            )
        exchange.connected_at = perf_counter()
        return connection

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.unfreeze()


def loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    try:
        import uvloop
    except ImportError:
        return None  # asyncio's own loop: slower, and the loop-lag gate tells when that matters
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory
