"""How sure a plan is: the same question asked in other worlds, each with coefficients and requests of its own.

A world takes one draw of the step model's bootstrap and a seed. Of so many worlds the interval reaches from one that is
as far from the end as the share says: with 19, from the least to the most holds 90 %, as a twentieth that is like them
falls between them in 18 of 20 cases. So it is an interval for one run of so many requests, and not for the mean.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor

from twofour.bench.capacity.search import World, fewest

WORLDS = 19
SHARE = 0.9


@dataclass(frozen=True)
class Spread:
    """Over worlds; an end that is None lies beyond what was tried."""

    low: float | None
    high: float | None
    worlds: int


@dataclass(frozen=True)
class Sureness:
    """holds: in how large a share of the worlds the promise is kept by the replicas that were planned."""

    holds: float
    replicas: Spread
    found_s: dict[str, Spread]  # by the terms of the promise
    requests: int  # of each run
    refused: int = 0  # of all of them, as they are longer than the server takes


def interval(values: Sequence[float], share: float = SHARE) -> tuple[float, float]:
    """In which one more such value lies in so large a share of cases; the ends are values. Few values: all of them."""
    ranked = sorted(values)
    outside = max(1, floor((len(ranked) + 1) * (1 - share) / 2 + 1e-9))
    return ranked[outside - 1], ranked[-outside]


def sureness(worlds: Sequence[World], rate: float, replicas: int) -> Sureness:
    """Each world is asked with a part of the fleet and of its traffic; where replicas take turns, parts are alike."""
    needed = [_needed(world, rate, replicas) for world in worlds]
    trials = [world.part(rate, replicas) for world in worlds]
    terms = [trial.attained.terms for trial in trials]
    found = {of[0].term: [kept.found_s for kept in of] for of in zip(*terms, strict=True)}
    return Sureness(
        holds=sum(world.part_kept(rate, replicas) for world in worlds) / len(worlds),
        replicas=spread(needed),
        found_s={term: spread(values) for term, values in found.items()},
        requests=worlds[0].requests,
        refused=sum(record.error is not None for trial in trials for record in trial.found.records),
    )


def spread(values: Sequence[float | None]) -> Spread:
    """Where one is not known, it is more than all that are."""
    low, high = interval([float("inf") if value is None else value for value in values])
    return Spread(_finite(low), _finite(high), len(values))


def _finite(value: float) -> float | None:
    return value if value < float("inf") else None


def _needed(world: World, rate: float, replicas: int) -> int | None:
    """How many would do in this world."""
    return fewest(lambda count: world.part_kept(rate, count), replicas, 2 * replicas + 2)
