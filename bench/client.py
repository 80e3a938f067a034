"""The load client: one event loop, raw sockets, and no work while the clock runs that could wait until after.

A read is stored with its time, and only the framing is looked at, to find the end of a response; events and
JSON are decoded when the run is over. Requests are made into bytes before it starts, and the garbage
collector is off. Open loop (no `concurrency`): every request leaves at its time, whatever is still under
way. Closed loop: so many workers send one request after another; the first request runs alone, and the
workers then start spread over the time that it took, so that they do not march in step.
"""

import asyncio
import gc
import json
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from time import perf_counter
from typing import cast

from twofour.bench import decode, wire, workload
from twofour.bench.decode import Exchange
from twofour.bench.records import Record, Request

TICK_S = 0.005


def drive(
    url: str,
    model: str,
    requests: Sequence[Request],
    concurrency: int | None,
    api_key: str | None,
    timeout_s: float,
    nonce: str,
    lags: list[float] | None = None,
    on_end: Callable[[], None] | None = None,
    plain: bool = False,
) -> list[Record]:
    """Send the requests and return their records in the same order.

    `plain`: with nothing that OpenAI's API does not have, so the model itself must not end an answer early.
    `lags` is filled with the lateness of the event loop in seconds, `on_end` is called after every request.
    """
    to = wire.target(url)
    jobs = [Job(request, _message(to, model, request, api_key, nonce, plain)) for request in requests]
    client = Client(to, timeout_s, on_end)
    load = _open_loop(client, jobs) if concurrency is None else _closed_loop(client, jobs, concurrency)
    with no_garbage_collection(), asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(_observed(client, load, lags if lags is not None else []))
    return [decode.record(job.exchange, api_key) for job in jobs]


@dataclass
class Job:
    request: Request
    message: bytes = field(repr=False)  # the key is in it
    exchange: Exchange = field(init=False)

    def __post_init__(self) -> None:
        self.exchange = Exchange(self.request.index)


def _message(to: wire.Target, model: str, request: Request, api_key: str | None, nonce: str, plain: bool) -> bytes:
    body = {
        "model": model,
        "prompt": workload.marked(request, nonce),
        "max_tokens": request.output_tokens,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    if not plain:
        body |= {"min_tokens": request.output_tokens, "ignore_eos": True}
        body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}
    return wire.post(to, "/completions", json.dumps(body).encode(), api_key)


async def _observed(client: "Client", load: Coroutine[None, None, None], lags: list[float]) -> None:
    ticker = asyncio.create_task(_tick(lags))
    try:
        await load
    finally:
        ticker.cancel()
        with suppress(asyncio.CancelledError):
            await ticker
        client.close()


async def _tick(lags: list[float]) -> None:
    while True:
        due_at = perf_counter() + TICK_S
        await asyncio.sleep(TICK_S)
        lags.append(perf_counter() - due_at)


async def _open_loop(client: "Client", jobs: Sequence[Job]) -> None:
    started_at = perf_counter()
    async with asyncio.TaskGroup() as group:
        for job in sorted(jobs, key=lambda job: job.request.at_s):
            job.exchange.scheduled_at = started_at + job.request.at_s
            await _until(job.exchange.scheduled_at)
            group.create_task(client.send(job))


async def _until(due_at: float) -> None:
    # A loop's timers count whole milliseconds and may fire early; a request must not.
    while (left_s := due_at - perf_counter()) > 0:
        await asyncio.sleep(left_s)


async def _closed_loop(client: "Client", jobs: Sequence[Job], concurrency: int) -> None:
    queue = iter(jobs)
    first = next(queue, None)
    if first is None:
        return
    started_at = perf_counter()
    await _send_now(client, first)
    spread_s = (perf_counter() - started_at) / concurrency
    async with asyncio.TaskGroup() as group:
        for worker in range(min(concurrency, len(jobs))):
            group.create_task(_work(client, queue, worker * spread_s))


async def _work(client: "Client", queue: Iterator[Job], delay_s: float) -> None:
    await asyncio.sleep(delay_s)
    for job in queue:
        await _send_now(client, job)


async def _send_now(client: "Client", job: Job) -> None:
    job.exchange.scheduled_at = perf_counter()
    await client.send(job)


class Client:
    """The connections to one server. `send` gives every exchange its one ending; it raises nothing."""

    def __init__(self, to: wire.Target, timeout_s: float, on_end: Callable[[], None] | None) -> None:
        self._to = to
        self._timeout_s = timeout_s
        self._on_end = on_end
        self._idle: list[Connection] = []

    async def send(self, job: Job) -> None:
        exchange = job.exchange
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._attempts(job)
        except TimeoutError:
            exchange.error = f"timeout: no end after {self._timeout_s:g} s"
        except wire.WireError as error:
            exchange.error = f"protocol: {error}"
        except ConnectionResetError as error:
            exchange.error = f"reset: {error}"
        except OSError as error:
            exchange.error = f"connect: {error}"
        exchange.done_at = exchange.done_at or perf_counter()
        if self._on_end:
            self._on_end()

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
        await self._ask(await self._connect(), job)

    async def _ask(self, connection: "Connection", job: Job) -> None:
        try:
            await connection.ask(job.message, job.exchange)
        finally:
            if connection.reusable:
                self._idle.append(connection)
            else:
                connection.close()

    def _reused(self) -> "Connection | None":
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                return connection
        return None

    async def _connect(self) -> "Connection":
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, self._to.host, self._to.port)
        return connection

    def close(self) -> None:
        for connection in self._idle:
            connection.close()


class Connection(asyncio.Protocol):
    """One socket, one request at a time: it notes what arrives and when."""

    def __init__(self) -> None:
        self._transport: asyncio.Transport
        self._response = wire.Response()
        self._exchange: Exchange | None = None
        self._ended: asyncio.Future[None] | None = None
        self.lost = False

    @property
    def heard(self) -> bool:
        """A byte of the current response has arrived."""
        return self._response.started

    @property
    def reusable(self) -> bool:
        return self._response.done and self._response.keep_alive and not self.lost

    async def ask(self, message: bytes, exchange: Exchange) -> None:
        self._response, self._exchange = wire.Response(), exchange
        self._ended = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        exchange.sent_at = perf_counter()
        await self._ended

    def close(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        at = perf_counter()
        exchange = self._exchange
        if exchange is None or self._response.done:  # nobody asked
            return self.close()
        try:
            body = self._response.feed(data)
        except wire.WireError as error:
            return self._fail(error)
        if exchange.headers_at is None and self._response.status is not None:
            exchange.headers_at, exchange.status = at, self._response.status
        if body:
            exchange.reads.append((at, body))
        if self._response.done:
            self._finish(at)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if self._response.end():
            self._finish(perf_counter())
        else:
            self._fail(ConnectionResetError("the server closed the connection before the end of the response"))

    def _finish(self, at: float) -> None:
        if self._exchange and self._ended and not self._ended.done():
            self._exchange.done_at = at
            self._ended.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._ended and not self._ended.done():
            self._ended.set_exception(error)


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
