"""Choices among groups of linears: what is asked for is kept, refused by what is possible, and monotone."""

import pytest
import torch

from twofour.prune.errors import InputError
from twofour.prune.format.schemes import Scheme
from twofour.prune.policy.curve import through
from twofour.prune.policy.market import Market, market, merged
from twofour.prune.policy.prices import price
from twofour.prune.policy.prices import priced as priced_in
from twofour.prune.policy.sensitivity import Sensitivity

ALL: tuple[Scheme, ...] = ("2:4", "2:4-int8", "dense", "dense-int8")
SHAPES = {f"{block}.{name}": (64, 64) for block in range(4) for name in "qkod"}
GROUPS = [[f"{block}.{name}" for name in names] for block in range(4) for names in ("qk", "o", "d")]
LOSSES = {name: 0.01 * (number + 1) * (-1 if number == 3 else 1) for number, name in enumerate(SHAPES)}


def priced(schemes: tuple[Scheme, ...] = ALL, kind: str = "bytes", card: str | None = None) -> Market:
    prices = priced_in(SHAPES.values(), price(kind, torch.bfloat16, card))  # type: ignore[arg-type]
    return market(GROUPS, SHAPES, schemes, prices, Sensitivity(LOSSES, 0.003))


@pytest.mark.parametrize("budget", [0.35, 0.4, 0.45, 0.5])
def test_a_budget_is_kept_and_more_of_it_loses_less(budget: float) -> None:
    known = priced()
    found, more = known.for_budget(budget), known.for_budget(budget + 0.03)
    assert found.cost <= budget * known.dense_cost and found.loss >= more.loss
    dense = known.dense_cost // len(SHAPES)
    assert dense == 64 * 64 * 2
    assert all(len({found.schemes[name] for name in group}) == 1 for group in GROUPS)


def test_in_bytes_16_bits_of_2_of_4_never_pay() -> None:
    assert all("2:4" not in priced().for_budget(budget).schemes.values() for budget in (0.35, 0.4, 0.45, 0.5))


def test_in_arithmetic_int8_never_pays() -> None:
    known = priced(kind="prefill", card="H100")
    assert set(known.for_budget(0.8).schemes.values()) == {"2:4", "dense"}


def test_what_loses_nothing_is_2_of_4() -> None:
    known = priced()
    assert known.for_budget(0.52).schemes["0.d"] == "2:4-int8"  # its loss is below 0


def test_impossible_budgets_are_refused_with_what_is_possible() -> None:
    known = priced()
    with pytest.raises(InputError, match=f"costs {known.least_share} of the dense"):
        known.for_budget(0.3)
    with pytest.raises(InputError, match="below that"):
        known.for_budget(1.0)
    with pytest.raises(InputError, match="nothing would be 2:4"):
        known.for_budget(0.54)
    assert set(known.for_budget(known.least_share).schemes.values()) == {"2:4-int8"}


def test_the_cheapest_within_a_divergence() -> None:
    known = priced()
    curve = through((mixture.loss, 0.8 * mixture.loss) for mixture in known.ladder())
    for divergence in (0.01, 0.1, 0.5):
        found = known.for_divergence(divergence, curve)
        assert curve.divergence(found.loss) <= divergence * (1 + 1e-9)
        cheaper = known.for_budget(found.cost / known.dense_cost - 0.02)
        assert curve.divergence(cheaper.loss) > divergence
    with pytest.raises(InputError, match="the closest mixture"):
        priced(("2:4-int8", "dense-int8")).for_divergence(1e-4, curve)


def test_the_ladder_goes_from_nearly_dense_to_the_cheapest() -> None:
    ladder = priced().ladder()
    costs = [mixture.cost for mixture in ladder]
    assert costs == sorted(costs, reverse=True) and set(ladder[-1].schemes.values()) == {"2:4-int8"}


def test_experts_of_a_layer_are_decided_together() -> None:
    groups = [[f"0.experts.{n}.{name}" for name in names] for n in range(3) for names in (("gate", "up"), ("down",))]
    found = merged([["0.q", "0.k"], *groups, ["1.experts.0.down"]])
    assert [len(group) for group in found] == [2, 6, 3, 1]
    assert found[2] == [f"0.experts.{n}.down" for n in range(3)]
