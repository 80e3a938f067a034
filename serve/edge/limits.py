"""How much one API key may ask for in a minute. Off unless limits are given."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import ceil
from time import monotonic

from starlette.types import ASGIApp, Receive, Scope, Send

from twofour.serve.edge.errors import RequestError, send_error

Clock = Callable[[], float]
Settle = Callable[[int], None]  # told what was used
Reserve = Callable[[int], Settle]  # told what may be used


class Allowance:
    """Fills steadily, up to the amount of one minute. What a request may use is taken before it runs, and what it did
    not use is given back at its end: requests that run side by side cannot use more. A request that may use more than a
    minute's amount needs a full allowance, and takes it below zero; the next one is refused until it has recovered."""

    def __init__(self, per_minute: float, clock: Clock) -> None:
        self.per_minute = per_minute
        self._clock, self._level, self._at = clock, per_minute, clock()

    def wait_s(self, amount: float = 1) -> float:
        """Seconds until this amount can be taken; 0: now."""
        return max(0.0, min(amount, self.per_minute) - self._now()) * 60 / self.per_minute

    def take(self, amount: float) -> None:
        self._level = self._now() - amount

    def give_back(self, amount: float) -> None:
        self._level = min(self.per_minute, self._now() + amount)

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
    """Counts requests itself. Tokens are counted by the application, through `scope["state"]["reserve"]`."""

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
            scope["state"]["reserve"] = partial(reserve, allowances["tokens"])
        await self._app(scope, receive, send)

    def _of(self, key: int | None) -> dict[str, Allowance]:
        if key not in self._keys:
            given = {"requests": self._limits.requests_per_minute, "tokens": self._limits.tokens_per_minute}
            self._keys[key] = {unit: Allowance(limit, self._clock) for unit, limit in given.items() if limit}
        return self._keys[key]


def reserve(allowance: Allowance, most: int) -> Settle:
    """Take the tokens that a request may use. At its end the caller must settle, with those that it did use."""
    if wait_s := allowance.wait_s(most):
        raise too_many("tokens", allowance.per_minute, wait_s, ", or ask for fewer (max_tokens)")
    allowance.take(most)
    return lambda used: allowance.give_back(most - used)


def too_many(unit: str, per_minute: float, wait_s: float, remedy: str = "") -> RequestError:
    message = f"more than {per_minute:g} {unit} in a minute with this key; try again in {ceil(wait_s)} s{remedy}"
    headers = {"Retry-After": str(ceil(wait_s))}
    return RequestError(429, message, type="rate_limit_error", code="rate_limit_exceeded", headers=headers)
