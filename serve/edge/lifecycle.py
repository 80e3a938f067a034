"""Whether new requests are taken, and how many are still being answered."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from starlette.types import ASGIApp, Receive, Scope, Send

from twofour.serve.edge.errors import CLOSE, crowded, not_ready, send_error

PROBES = frozenset({"/health", "/ready", "/metrics"})  # served to the end


class Lifecycle:
    """The end: say so to who asks, then refuse what is new, wait for what runs, and end it."""

    def __init__(self) -> None:
        self.leaving = False  # /ready says no, requests are still taken: who sends them may hear of it late
        self.draining = False
        self.in_flight = 0
        self.expired = asyncio.Event()  # the grace is over: what still runs must end now
        self._idle = asyncio.Event()
        self._idle.set()

    @contextmanager
    def entered(self) -> Iterator[None]:
        self.in_flight += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.in_flight -= 1
            if self.in_flight == 0:
                self._idle.set()

    @property
    def ending(self) -> bool:
        """Whether the server has been told to end."""
        return self.leaving or self.draining

    async def drain(self, grace_s: float, ending_s: float = 2.0, pre_s: float = 0.0) -> None:
        """Refuse new requests after `pre_s`; return when none is left, at the latest `ending_s` after the grace."""
        self.leaving = True
        await asyncio.sleep(pre_s)
        self.draining = True
        if not await self._idle_within(grace_s):
            self.expired.set()
            await self._idle_within(ending_s)

    async def _idle_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._idle.wait(), seconds)
        except TimeoutError:
            return False
        return True


class DrainGate:
    """Counts requests. Refuses new ones while the server drains, and where it has no room for their connection."""

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        self._app, self._lifecycle = app, lifecycle

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in PROBES:
            return await self._app(scope, receive, send)
        if self._lifecycle.draining:
            error = not_ready("the server is shutting down; try another one", CLOSE)
            return await send_error(scope, send, error)
        if scope["state"].get("crowded"):
            return await send_error(scope, send, crowded())
        with self._lifecycle.entered():
            await self._app(scope, receive, send)
