"""The front of several offers, each at a cost and with a loss: those that no other one beats."""

from collections.abc import Mapping
from typing import NamedTuple


class Offer(NamedTuple):
    """What one gets; less of both is better."""

    cost: float
    loss: float


def front(offers: Mapping[str, Offer]) -> list[str]:
    """The names of those that no other dominates, the cheapest first; equal ones are all there."""
    best = [name for name, offer in offers.items() if not any(dominates(other, offer) for other in offers.values())]
    return sorted(best, key=lambda name: offers[name])


def dominates(one: Offer, other: Offer) -> bool:
    """At least as good in both, and better in one."""
    return one.cost <= other.cost and one.loss <= other.loss and one != other
