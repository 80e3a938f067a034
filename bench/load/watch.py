"""Looking on while a load runs: a line about it each second, and whether the server keeps up.

What is looked at the client counts as it goes; nothing is decoded. So tokens are the pieces that came, of which most
servers make one a token, and a request has failed where it ended badly or its status is not 200.

A server is over-saturated when ever more requests are under way: at all times of the last quarter more than ever in the
second quarter, and that by more than chance, which is about the root of the requests that ended since. Nothing is said
until three times as long as the first requests took, since so long the load fills up. In simulations of three minutes
this stops all loads of 1.3 times what the server can do, after 8 to 60 s, and at most one in thirty of nine tenths.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from time import perf_counter

from twofour.bench.load.decode import Exchange
from twofour.prune.progress import Progress, Step

LOOK_S = 0.1
LINE_S = 1.0
_FEWEST_LOOKS = 80
_FIRST = 16  # requests that tell how long an answer takes before there is a queue


@dataclass
class Seen:
    """What the client has done of a load until now."""

    under_way: dict[int, Exchange] = field(default_factory=dict)  # by identity, in the order of their sending
    ended: int = 0
    failed: int = 0
    reads: int = 0  # of the requests that have ended

    def begin(self, exchange: Exchange) -> None:
        self.under_way[id(exchange)] = exchange

    def end(self, exchange: Exchange) -> None:
        del self.under_way[id(exchange)]
        self.ended += 1
        self.failed += exchange.error is not None or exchange.status != 200
        self.reads += exchange.pieces

    @property
    def pieces(self) -> int:
        return self.reads + sum(exchange.pieces for exchange in self.under_way.values())


@dataclass(frozen=True)
class Level:
    under_way: int
    ended: int


Look = Callable[[Seen, float], bool]  # called every few milliseconds with the time; True: the load is to be ended


class Watch:
    """total: requests at most. duration_s: what ends the load, where its requests do not. stop: when over-saturated."""

    def __init__(self, total: int, duration_s: float | None, stop: bool, progress: Progress) -> None:
        self._total = total
        self._duration_s = duration_s
        self._stop = stop
        self._progress = progress
        self._started_at: float | None = None
        self._looked_at = self._said_at = 0.0
        self._pieces = 0
        self._levels: list[Level] = []
        self._first: set[int] = set()
        self._settled: int | None = None  # looks until the first requests had ended

    def look(self, seen: Seen, now: float) -> bool:
        if self._started_at is None:
            self._started_at = self._looked_at = self._said_at = now
        if now - self._said_at >= LINE_S:
            self._say(now, seen)
        if not self._stop or now - self._looked_at < LOOK_S:
            return False
        self._looked_at = now
        self._levels.append(Level(len(seen.under_way), seen.ended))
        return self._has_settled(seen) and over_saturated(self._levels)

    def last(self, seen: Seen) -> None:
        """The load has ended."""
        self._report(perf_counter(), seen.ended if self._duration_s is None else round(self._duration_s), "")

    def _say(self, now: float, seen: Seen) -> None:
        pieces = seen.pieces
        per_s = (pieces - self._pieces) / (now - self._said_at)
        self._said_at, self._pieces = now, pieces
        done = seen.ended
        if self._duration_s is not None:
            done = min(round(now - (self._started_at or now)), round(self._duration_s))
        self._report(now, done, f"{per_s:,.0f} tokens/s, {len(seen.under_way)} in flight, {seen.failed} failed")

    def _report(self, now: float, done: int, detail: str) -> None:
        total = self._total if self._duration_s is None else round(self._duration_s)
        self._progress(Step("load", done, total, now - (self._started_at or now), detail))

    def _has_settled(self, seen: Seen) -> bool:
        if self._settled is None:
            if len(self._first) < _FIRST:
                self._first |= set(islice(seen.under_way, _FIRST - len(self._first)))
            elif not self._first & seen.under_way.keys():
                self._settled = len(self._levels)
        return self._settled is not None and len(self._levels) > 3 * self._settled


def over_saturated(levels: Sequence[Level]) -> bool:
    """levels: what was under way at even times since the start."""
    if len(levels) < _FEWEST_LOOKS:
        return False
    quarter, half = len(levels) // 4, len(levels) // 2
    more = min(each.under_way for each in levels[-quarter:]) - max(each.under_way for each in levels[quarter:half])
    return more > math.sqrt(max(1, levels[-1].ended - levels[half].ended))
