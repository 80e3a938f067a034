"""One socket of the load client: one request at a time, and what arrives and when."""

import asyncio
from time import perf_counter
from typing import cast

from twofour.bench.load import wire
from twofour.bench.load.decode import Exchange
from twofour.bench.load.spool import BLOCK, Spool


class Connection(asyncio.Protocol):
    """`idle_s`: how long nothing may come before a request counts as lost, however long its answer takes.

    spool: where much that came goes; None: it stays in the exchange.
    """

    def __init__(self, idle_s: float, spool: Spool | None = None) -> None:
        self._transport: asyncio.Transport
        self._idle_s = idle_s
        self._spool = spool
        self._response = wire.Response()
        self._exchange: Exchange | None = None
        self._ended: asyncio.Future[None] | None = None
        self._heard_at = 0.0
        self.lost = False

    @property
    def heard(self) -> bool:
        """A byte of the current response has arrived."""
        return self._response.started

    @property
    def reusable(self) -> bool:
        return self._response.done and self._response.keep_alive and not self.lost

    async def ask(self, message: bytes, exchange: Exchange) -> None:
        loop = asyncio.get_running_loop()
        self._response, self._exchange = wire.Response(), exchange
        self._ended = loop.create_future()
        self._transport.write(message)
        exchange.sent_at = self._heard_at = perf_counter()
        self._watch(loop, self._ended, self._idle_s)
        await self._ended

    def close(self) -> None:
        self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._heard_at = at = perf_counter()
        exchange = self._exchange
        if exchange is None or self._response.done:  # nobody asked
            return self.close()
        try:
            body = self._response.feed(data)
        except wire.WireError as error:
            return self._fail(error)
        if exchange.headers_at is None and self._response.status is not None:
            exchange.headers_at, exchange.status = at, self._response.status
            exchange.headers = self._response.headers
        if body:
            exchange.reads.append((at, body))
            if self._spool and not len(exchange.reads) % BLOCK:
                exchange.spill(self._spool)
        if self._response.done:
            self._finish(at)

    def connection_lost(self, error: Exception | None) -> None:
        self.lost = True
        if self._response.end():
            self._finish(perf_counter())
        else:
            self._fail(ConnectionResetError("the server closed the connection before the end of the response"))

    def _watch(self, loop: asyncio.AbstractEventLoop, ended: "asyncio.Future[None]", after_s: float) -> None:
        """Look every `idle_s` whether anything has come; a timer for each read would cost too much."""
        timer = loop.call_later(after_s, self._look, loop, ended)
        ended.add_done_callback(lambda _: timer.cancel())

    def _look(self, loop: asyncio.AbstractEventLoop, ended: "asyncio.Future[None]") -> None:
        left_s = self._heard_at + self._idle_s - perf_counter()
        if left_s > 0:
            self._watch(loop, ended, left_s)
        elif not ended.done():
            ended.set_exception(TimeoutError())

    def _finish(self, at: float) -> None:
        if self._exchange and self._ended and not self._ended.done():
            self._exchange.done_at = at
            self._ended.set_result(None)

    def _fail(self, error: Exception) -> None:
        if self._ended and not self._ended.done():
            self._ended.set_exception(error)
