"""When requests arrive: seconds after the start of the run, seeded."""

import random
from collections.abc import Iterator


def poisson(rate: float, seed: int) -> Iterator[float]:
    """Yield the arrivals of a Poisson process, without end; `rate` is in requests per second."""
    draw = random.Random(f"{seed}/arrivals")
    now_s = 0.0
    while True:
        now_s += draw.expovariate(rate)
        yield now_s
