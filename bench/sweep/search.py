"""The highest rate that keeps a promise: bracketed first, then bisected. Pure: `kept` asks whom it likes."""

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

LOWEST = 16.0  # a search gives up when a rate so many times below its start is not kept either


@dataclass(frozen=True)
class Bracket:
    """low: the highest rate that was kept, None: none was. high: the lowest that was not, None: none was found."""

    low: float | None = None
    high: float | None = None

    @property
    def open(self) -> bool:
        return self.low is None or self.high is None

    @property
    def middle(self) -> float:
        return sqrt((self.low or 1.0) * (self.high or 1.0))


def highest(kept: Callable[[float], bool | None], start: float, step: float, within: float) -> Bracket:
    """Search from `start` by factors of `step`, each the square of the last, then by halves until they are so near.

    Where `kept` answers None, nothing can be said, and the search ends with what it has.
    """
    found, rate = Bracket(), start
    while found.open:
        answer = kept(rate)
        if answer is None:
            return found
        found, rate = (Bracket(rate, found.high), rate * step) if answer else (Bracket(found.low, rate), rate / step)
        if found.low is None and rate < start / LOWEST:
            return found
        step = min(step * step, 2.0)
    return _bisected(kept, found, within)


def _bisected(kept: Callable[[float], bool | None], found: Bracket, within: float) -> Bracket:
    while (found.high or 0.0) > (found.low or 0.0) * (1 + within):
        answer = kept(found.middle)
        if answer is None:
            return found
        found = Bracket(found.middle, found.high) if answer else Bracket(found.low, found.middle)
    return found
