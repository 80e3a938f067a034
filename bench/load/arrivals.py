"""When requests arrive: seconds after the start of the run, seeded.

Every process is one of unit rate, stretched: the rate, or a ramp of rates, moves the times and nothing else. A ramp is
linear in time; with `u` the arrivals so far, the time solves  u = from t + (to - from) t^2 / (2 over).
"""

import math
import random
from collections.abc import Iterable, Iterator
from itertools import count


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Yield the arrivals of a Poisson process, without end; `rate` is in requests per second."""
    return at_rate(units(1.0, seed), rate)


def units(shape: float | None, seed: int) -> Iterator[float]:
    """One arrival a second in the mean, without end. Gaps have a gamma distribution of that shape.

    1 is a Poisson process; below, arrivals come in bursts (the gaps vary by 1 / sqrt(shape)); None: evenly spaced.
    """
    if shape is None:
        yield from map(float, count(1))
        return
    draw, now = random.Random(f"{seed}/arrivals"), 0.0
    while True:
        now += draw.gammavariate(shape, 1 / shape)
        yield now


def at_rate(units: Iterable[float], rate: float) -> Iterator[float]:
    """The same at so many a second."""
    return (unit / rate for unit in units)


def ramp(units: Iterable[float], rate: float, to_rate: float, over_s: float) -> Iterator[float]:
    """The same at a rate that goes from `rate` to `to_rate` within `over_s`, and stays there."""
    slope, before = (to_rate - rate) / over_s, (rate + to_rate) / 2 * over_s
    for unit in units:
        if unit <= before:
            yield 2 * unit / (rate + math.sqrt(max(0.0, rate**2 + 2 * slope * unit)))
        else:
            yield over_s + (unit - before) / to_rate
