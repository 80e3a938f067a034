"""The front by hand, and against a second definition over random offers."""

import random

import pytest

from twofour.bench.pareto import Offer, front


def test_the_front_by_hand() -> None:
    offers = {
        "dense": Offer(2.0, 0.0),
        "int8": Offer(1.06, 0.003),
        "2:4": Offer(1.125, 0.8),  # costs more than int8, and loses more
        "2:4 int8": Offer(0.65, 0.8),
        "same as int8": Offer(1.06, 0.003),
        "as cheap, worse": Offer(0.65, 0.9),
    }
    assert front(offers) == ["2:4 int8", "int8", "same as int8", "dense"]
    assert front({}) == []


@pytest.mark.parametrize("seed", range(20))
def test_the_front_is_what_a_sweep_from_cheap_to_dear_keeps(seed: int) -> None:
    draw = random.Random(seed)
    offers = {str(n): Offer(draw.randrange(12), draw.randrange(12)) for n in range(15)}
    kept, least = [], float("inf")
    for cost in sorted({offer.cost for offer in offers.values()}):
        here = min(offer.loss for offer in offers.values() if offer.cost == cost)
        if here < least:
            kept += [name for name, offer in offers.items() if offer == (cost, here)]
            least = here
    assert front(offers) == kept
