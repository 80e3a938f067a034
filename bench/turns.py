"""Whose turn it is: in every round each has one turn, in an order that changes from round to round.

Every second round is the one before it reversed (ABBA), so that what drifts over the two meets all alike. From one pair
of rounds to the next the order rotates: over six rounds, three names take all their orders.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from twofour.prune.errors import InputError

MOST_ROUNDS = 1_000  # no interval becomes much narrower by more, and all that was measured is kept until the end

K = TypeVar("K")
T = TypeVar("T")
P = TypeVar("P")


@dataclass(frozen=True)
class Cell(Generic[P, T]):
    """What turns at one place gave."""

    place: P
    turns: Mapping[str, Sequence[T]]  # by arm, one for each round

    @property
    def rounds(self) -> int:
        return min(map(len, self.turns.values()))


def alternate(turns: Mapping[K, Callable[[], T]], rounds: Iterable[int]) -> dict[K, list[T]]:
    """Take all turns once in every round; what each gave, by round."""
    found: dict[K, list[T]] = {name: [] for name in turns}
    for round_ in rounds:
        for name in order(list(turns), round_):
            found[name].append(turns[name]())
    return found


def whole_rounds(turns: Mapping[K, Callable[[], T]], rounds: Iterable[int]) -> dict[K, list[T]]:
    """The same, but after an interrupt: what whole rounds gave. Without any, the interrupt comes out of here."""
    done: list[dict[K, list[T]]] = []
    try:
        for round_ in rounds:
            done.append(alternate(turns, [round_]))
    except KeyboardInterrupt:
        if not done:
            raise
    return {name: [found for each in done for found in each[name]] for name in turns}


def refuse_endless(rounds: int) -> None:
    if rounds > MOST_ROUNDS:
        raise InputError(f"{rounds:,} rounds do not end; --rounds is at most {MOST_ROUNDS:,}, and 6 give an interval")


def order(names: Sequence[K], round_: int) -> list[K]:
    """All names, in their order in this round."""
    first = round_ // 2 % len(names)
    rotated = [*names[first:], *names[:first]]
    return rotated if round_ % 2 == 0 else rotated[::-1]
