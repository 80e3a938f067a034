"""How much one API key may ask for in a minute. Off unless limits are given."""

from collections.abc import Callable
from dataclasses import dataclass
from math import ceil
from time import monotonic

from starlette.types import ASGIApp, Receive, Scope, Send

from twofour.serve.edge.errors import RequestError, send_error

Clock = Callable[[], float]


class Allowance:
    """Fills steadily, up to a minute's worth. It may be overdrawn, since an answer's length is known at its end; then
    it has to recover first."""

    def __init__(self, per_minute: float, clock: Clock) -> None:
        self.per_minute = per_minute
        self._clock, self._level, self._at = clock, per_minute, clock()

    def wait_s(self) -> float:
        """Until one can be taken; 0: now."""
        return max(0.0, 1 - self._now()) * 60 / self.per_minute

    def take(self, amount: float) -> None:
        self._level = self._now() - amount

    def _now(self) -> float:
        now = self._clock()
        self._level = min(self.per_minute, self._level + (now - self._at) * self.per_minute / 60)
        self._at = now
        return self._level


@dataclass(frozen=True)
class Limits:
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None  # of prompts and answers


class RateLimit:
    """Counts requests itself; tokens are told by the application, through `scope["state"]["spend"]`."""

    def __init__(self, app: ASGIApp, limits: Limits, clock: Clock = monotonic) -> None:
        self._app, self._limits, self._clock = app, limits, clock
        self._keys: dict[int | None, dict[str, Allowance]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            return await self._app(scope, receive, send)
        allowances = self._of(scope["state"].get("key"))
        for unit, allowance in allowances.items():
            if wait_s := allowance.wait_s():
                return await send_error(scope, send, too_many(unit, allowance.per_minute, wait_s))
        if "requests" in allowances:
            allowances["requests"].take(1)
        if "tokens" in allowances:
            scope["state"]["spend"] = allowances["tokens"].take
        await self._app(scope, receive, send)

    def _of(self, key: int | None) -> dict[str, Allowance]:
        if key not in self._keys:
            given = {"requests": self._limits.requests_per_minute, "tokens": self._limits.tokens_per_minute}
            self._keys[key] = {unit: Allowance(limit, self._clock) for unit, limit in given.items() if limit}
        return self._keys[key]


def too_many(unit: str, per_minute: float, wait_s: float) -> RequestError:
    message = f"more than {per_minute:g} {unit} in a minute with this key; try again in {ceil(wait_s)} s"
    headers = {"Retry-After": str(ceil(wait_s))}
    return RequestError(429, message, type="rate_limit_error", code="rate_limit_exceeded", headers=headers)
