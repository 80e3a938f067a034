"""Whose turn it is: in every round each once, in an order that turns by one from round to round."""

from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

K = TypeVar("K")
T = TypeVar("T")


def alternate(turns: Mapping[K, Callable[[], T]], rounds: Iterable[int]) -> dict[K, list[T]]:
    """Take all turns once in every round; what each gave, by round."""
    found: dict[K, list[T]] = {name: [] for name in turns}
    for round_ in rounds:
        for name in order(list(turns), round_):
            found[name].append(turns[name]())
    return found


def whole_rounds(turns: Mapping[K, Callable[[], T]], rounds: Iterable[int]) -> dict[K, list[T]]:
    """The same. An interrupt ends it, and what whole rounds gave is kept; without any it comes out of here."""
    done: list[dict[K, list[T]]] = []
    try:
        for round_ in rounds:
            done.append(alternate(turns, [round_]))
    except KeyboardInterrupt:
        if not done:
            raise
    return {name: [found for each in done for found in each[name]] for name in turns}


def order(names: list[K], round_: int) -> list[K]:
    """Everyone, from a different first one in each of as many rounds."""
    first = round_ % len(names)
    return names[first:] + names[:first]
