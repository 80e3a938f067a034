"""What is to be served: requests of one kind whose rate can be chosen.

The same seed gives the same requests in the same order at any rate, nearer together or further apart: rates, replicas
and options are compared under common random numbers. Rates are those of sessions where traffic has several turns. Of a
trace, the busiest stretch counts, and its rate is the mean over that stretch; every seed has the same one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import count
from math import isfinite
from statistics import fmean

from twofour.bench.load import arrivals
from twofour.bench.load.workload import Schedule
from twofour.bench.traffic.traces import Row, Trace
from twofour.bench.traffic.traffic import Rate, Traffic
from twofour.prune.errors import InputError


@dataclass(frozen=True)
class Demand:
    """peak: what must be served. mean: what is served over a month, which is what machines are paid for."""

    traffic: Traffic  # with a rate, or a trace with times
    peak: float
    mean: float
    _made: dict[tuple[int, int], Schedule] = field(default_factory=dict, compare=False, repr=False)

    def schedule(self, rate: float, requests: int, seed: int) -> Schedule:
        made = self._at_peak(requests, seed)
        stretch = self.peak / rate
        moved = [replace(each, at_s=each.at_s * stretch) for each in made.requests]
        return replace(made, requests=moved)

    def turn_of(self, rate: float, requests: int, seed: int, few: int, of: int) -> Schedule:
        """What `few` of so many replicas get that take turns: as many requests, of all that come at this rate.

        Sessions go where their later turns go, which is not known: they come as at a part of the rate.
        """
        made = self._at_peak(requests, seed)
        if any(each.after is not None for each in made.requests):
            return self.schedule(rate * few / of, requests, seed)
        stretch = self.peak / rate
        if self.traffic.trace:
            chosen = [each for place, each in enumerate(made.requests) if place % of < few]
            moved = [replace(each, at_s=each.at_s * stretch) for each in chosen]
        else:
            units = arrivals.units((self.traffic.rate or Rate(1.0)).shape, seed)
            times = (at for place, at in enumerate(arrivals.at_rate(units, rate)) if place % of < few)
            moved = [replace(each, at_s=at) for each, at in zip(made.requests, times, strict=False)]
        return replace(made, requests=moved)

    def apart(self, rate: float, requests: int, seed: int) -> Schedule:
        """One after the other, evenly, whatever the times of a trace are."""
        made = self._at_peak(requests, seed)
        firsts = count()
        moved = [each if each.after is not None else replace(each, at_s=next(firsts) / rate) for each in made.requests]
        return replace(made, requests=moved)

    def lengths(self, requests: int, seed: int) -> tuple[float, float]:
        """Mean tokens of a prompt, with what was said before it, and of its answer."""
        made = self._at_peak(requests, seed).requests
        return fmean(each.prompt_tokens or 0 for each in made), fmean(each.output_tokens for each in made)

    def turns(self, requests: int, seed: int) -> float:
        """Requests of a session."""
        made = self._at_peak(requests, seed).requests
        return len(made) / sum(each.after is None for each in made)

    def longest(self, requests: int, seed: int) -> int:
        """Tokens of the longest prompt and its answer."""
        return max((each.prompt_tokens or 0) + each.output_tokens for each in self._at_peak(requests, seed).requests)

    @property
    def shares(self) -> bool:
        """Whether prompts begin alike, so that a prefix cache may find them."""
        asked, rows = self.traffic, self.traffic.trace.rows if self.traffic.trace else ()
        return bool(asked.shared_prefix or asked.keep_shared or asked.turns.mean > 1 or any(row.blocks for row in rows))

    def _at_peak(self, requests: int, seed: int) -> Schedule:
        key = (requests, seed)
        if key not in self._made:
            self._made[key] = _made(self.traffic, self.peak, requests, seed)
        return self._made[key]


def demand(traffic: Traffic, mean: float | None = None) -> Demand:
    """Raises InputError for what cannot be planned for. mean: None: that of the trace, or the peak all the time."""
    if traffic.concurrency is not None or (traffic.rate is None and not _timed(traffic.trace)):
        raise InputError("a plan is for arrivals: give --rate, or a --trace that says when requests came")
    if traffic.conversations and any(each.turns[0].said_tokens is None for each in traffic.conversations.all):
        raise InputError("how long the texts of --prompts are is not known; give --tokenizer DIR, which counts them")
    peak, usual = _of_trace(traffic) if traffic.trace else (_steady(traffic.rate or Rate(1.0)),) * 2
    mean = min(usual, peak) if mean is None else mean
    if not (0 < mean <= peak and isfinite(mean)):
        raise InputError(
            f"a mean of {mean:g} requests per second at a peak of {peak:g}; give one above 0, up to the peak"
        )
    return Demand(traffic, peak, mean)


def _timed(trace: Trace | None) -> bool:
    return trace is not None and trace.rows[0].at_s is not None


def _steady(rate: Rate) -> float:
    if rate.to_per_s is not None:
        raise InputError(
            f"a plan is for the peak, not for a ramp of {rate}; give --rate {max(rate.per_s, rate.to_per_s):g}"
        )
    return rate.per_s


MOST = 5000  # requests of a trace that are simulated: the busiest stretch of so many


def _of_trace(traffic: Traffic) -> tuple[float, float]:
    """Requests per second in the busiest stretch, and over all of the trace."""
    assert traffic.trace
    rows, faster = traffic.trace.rows, traffic.speed_up
    return _rate(busiest(rows, MOST)) * faster, _rate(rows) * faster


def _rate(rows: Sequence[Row]) -> float:
    span = (rows[-1].at_s or 0.0) - (rows[0].at_s or 0.0)
    if len(rows) < 2 or not span:
        raise InputError("all requests of the trace came at one time, which is no rate; give a longer trace")
    return (len(rows) - 1) / span


def busiest(rows: Sequence[Row], most: int) -> Sequence[Row]:
    """So many neighbours in the least time; the first such."""
    if len(rows) <= most:
        return rows
    times = [row.at_s or 0.0 for row in rows]
    spans = [times[first + most - 1] - times[first] for first in range(len(rows) - most + 1)]
    first = spans.index(min(spans))
    return rows[first : first + most]


def _made(traffic: Traffic, peak: float, requests: int, seed: int) -> Schedule:
    if not traffic.trace:
        made = replace(
            traffic, requests=requests, rate=replace(traffic.rate or Rate(1.0), per_s=1.0), seed=seed
        ).sketch()  # at any rate it is the same, and at a very small one it would seem to take too long
        return replace(made, requests=[replace(each, at_s=each.at_s / peak) for each in made.requests])
    rows = busiest(traffic.trace.rows, MOST)
    start = rows[0].at_s or 0.0
    moved = [replace(row, at_s=(row.at_s or 0.0) - start) for row in rows]
    return replace(traffic, trace=replace(traffic.trace, rows=moved), requests=None, seed=seed).sketch()
