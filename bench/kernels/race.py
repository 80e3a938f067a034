"""The race in one cell: all contenders on the same tokens, in turns."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice

import torch
from torch import Tensor

from twofour.bench.kernels.ceiling import clock
from twofour.bench.kernels.contenders import Contender
from twofour.bench.turns import alternate

Turn = Callable[[int], float]  # multiply at least that often and return the seconds of one multiplication

TRIAL_CALLS = 2


@dataclass(frozen=True)
class Lap:
    """`seconds` of one multiplication in each round, the mean over about `calls`."""

    calls: int
    seconds: tuple[float, ...]


def race(turns: Mapping[str, Turn], rounds: int, target_s: float) -> dict[str, Lap]:
    """One pair of times for any two contenders in every round. A turn lasts `target_s`, or one call if that is more."""
    calls = {name: max(1, round(target_s / turn(TRIAL_CALLS))) for name, turn in turns.items()}
    seconds = alternate({name: partial(turn, calls[name]) for name, turn in turns.items()}, range(rounds))
    return {name: Lap(calls[name], tuple(seconds[name])) for name in turns}


def cpu_turn(contender: Contender, x: Tensor, threads: int) -> Turn:
    """Every call takes the next copy of the weight, across rounds too, so that none is in a cache."""
    ring, now = cycle(contender.products), clock(threads)

    def turn(calls: int) -> float:
        with torch.inference_mode():
            started = now()
            for product in islice(ring, calls):
                product(x)
            return (now() - started) / calls

    return turn
