"""One option for each of some groups, so that they lose least for a cost, or cost least for a loss.

A multiple-choice knapsack, solved by a dynamic programme over the cost beyond that of the cheapest options:

    least[g, c] = min over options o of group g with extra cost e(o) <= c:  least[g - 1, c - e(o)] + loss(o)

Costs are whole numbers (bytes, picoseconds). They are counted in cells of their greatest common divisor, which is
exact, or where that takes too many cells, in coarser ones and rounded up: so a budget is never exceeded, and what the
rounding leaves over is spent by single upgrades afterwards. Equal losses: the cheaper, then the first option.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

CELLS = 1 << 17


class Option(NamedTuple):
    """What an option costs, and what it loses."""

    cost: int
    loss: float


Groups = Sequence[Sequence[Option]]


def least_loss(groups: Groups, budget: int, cells: int = CELLS) -> list[int]:
    """Return the number of the option of each group. The budget must suffice for the cheapest."""
    spare = budget - sum(map(cheapest, groups))
    assert spare >= 0, "the caller refuses a budget that the cheapest options exceed"
    table = _table(groups, min(spare, _span(groups)), cells)
    return _filled(groups, table.options(len(table.least) - 1), budget)


def least_cost(groups: Groups, loss: float, cells: int = CELLS) -> list[int]:
    """Return the number of the option of each group. The options that lose least must lose at most that."""
    table = _table(groups, _span(groups), cells)
    enough = table.least <= loss
    return table.options(int(enough.argmax()) if enough.any() else len(table.least) - 1)


def cheapest(options: Sequence[Option]) -> int:
    """Return the cost of the cheapest option."""
    return min(option.cost for option in options)


def total(groups: Groups, chosen: Sequence[int]) -> Option:
    """Add up what is chosen."""
    picked = [options[number] for options, number in zip(groups, chosen, strict=True)]
    return Option(sum(option.cost for option in picked), math.fsum(option.loss for option in picked))


@dataclass(frozen=True)
class _Table:
    """least: the least loss by extra cost. picks: by group and extra cost, the option. extras: of each, in cells."""

    least: np.ndarray  # float64 [cells + 1]
    picks: list[np.ndarray]  # uint8 [cells + 1] each
    extras: list[list[int]]

    def options(self, cell: int) -> list[int]:
        """Go back from an extra cost to the options that led to it."""
        chosen = list[int]()
        for picks, extras in zip(reversed(self.picks), reversed(self.extras), strict=True):
            chosen.append(int(picks[cell]))
            cell -= extras[chosen[-1]]
        return chosen[::-1]


def _table(groups: Groups, spare: int, cells: int) -> _Table:
    extras = [[option.cost - cheapest(options) for option in options] for options in groups]
    unit = max(1, math.gcd(*(extra for own in extras for extra in own)))
    if spare // unit > cells:
        unit = -(-spare // cells)
    in_cells = [[-(-extra // unit) for extra in own] for own in extras]
    least, picks = np.zeros(spare // unit + 1), list[np.ndarray]()
    for options, own in zip(groups, in_cells, strict=True):
        least, picked = _with(least, [option.loss for option in options], own)
        picks.append(picked)
    return _Table(least, picks, in_cells)


def _with(least: np.ndarray, losses: Sequence[float], extras: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Add a group: the least loss by extra cost with it, and the option that reaches it."""
    best, picks = np.full_like(least, math.inf), np.zeros(len(least), dtype=np.uint8)
    for number in sorted(range(len(losses)), key=lambda option: extras[option]):
        extra = extras[number]
        if extra >= len(least):
            break
        found = least[: len(least) - extra] + losses[number]
        better = found < best[extra:]
        best[extra:][better] = found[better]
        picks[extra:][better] = number
    return best, picks


def _filled(groups: Groups, chosen: list[int], budget: int) -> list[int]:
    """Spend what is left: as long as any fits, the single upgrade that wins most for its cost."""
    chosen, left = list(chosen), budget - total(groups, chosen).cost
    while upgrades := [
        (_worth(options[now], option), group, number, option.cost - options[now].cost)
        for group, (options, now) in enumerate(zip(groups, chosen, strict=True))
        for number, option in enumerate(options)
        if option.loss < options[now].loss and option.cost - options[now].cost <= left
    ]:
        _, group, number, cost = max(upgrades, key=lambda upgrade: (upgrade[0], -upgrade[1], -upgrade[2]))
        chosen[group], left = number, left - cost
    return chosen


def _worth(now: Option, option: Option) -> float:
    cost = option.cost - now.cost
    return math.inf if cost <= 0 else (now.loss - option.loss) / cost


def _span(groups: Groups) -> int:
    """How much more the dearest options cost than the cheapest."""
    return sum(max(option.cost for option in options) - cheapest(options) for options in groups)
