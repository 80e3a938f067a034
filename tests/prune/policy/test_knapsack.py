"""The knapsack against all combinations, and what holds for any choice."""

import itertools
import math
import random

import pytest

from twofour.prune.policy.knapsack import Groups, Option, least_cost, least_loss, total


def drawn(seed: int, coarse: bool) -> Groups:
    """Some groups of two to four options; dearer options mostly lose less. coarse: costs with a large divisor."""
    draw = random.Random(seed)
    unit = 1000 if coarse else 1
    return [
        [
            Option(unit * draw.randint(1, 40 if coarse else 10**6), round(draw.random() / (number + 1), 3))
            for number in range(draw.randint(2, 4))
        ]
        for _ in range(draw.randint(1, 5))
    ]


def combinations(groups: Groups) -> list[Option]:
    choices = itertools.product(*(range(len(options)) for options in groups))
    return [total(groups, chosen) for chosen in choices]


@pytest.mark.parametrize("seed", range(30))
def test_the_least_loss_is_that_of_all_combinations(seed: int) -> None:
    groups = drawn(seed, coarse=True)
    known = combinations(groups)
    for share in (0.0, 0.1, 0.35, 0.8, 1.0):
        least, most = min(known).cost, max(each.cost for each in known)
        budget = least + int(share * (most - least))
        found = total(groups, least_loss(groups, budget))
        assert found.cost <= budget
        assert found.loss == pytest.approx(min(each.loss for each in known if each.cost <= budget))


@pytest.mark.parametrize("seed", range(30))
def test_the_least_cost_is_that_of_all_combinations(seed: int) -> None:
    groups = drawn(seed, coarse=True)
    known = combinations(groups)
    for loss in sorted({each.loss for each in known})[:: max(1, len(known) // 7)]:
        wanted = loss + 1e-9
        found = total(groups, least_cost(groups, wanted))
        assert found.loss <= wanted and found.cost == min(each.cost for each in known if each.loss <= wanted)


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("cells", [10, 1000, 100_000])
def test_coarse_cells_keep_the_budget_and_leave_no_upgrade(seed: int, cells: int) -> None:
    groups = drawn(seed, coarse=False)
    known = combinations(groups)
    budget = (min(known).cost + max(each.cost for each in known)) // 2
    chosen = least_loss(groups, budget, cells)
    found = total(groups, chosen)
    assert found.cost <= budget
    for group, options in enumerate(groups):
        now = options[chosen[group]]
        assert not [o for o in options if o.loss < now.loss and found.cost - now.cost + o.cost <= budget]
    best = min(each.loss for each in known if each.cost <= budget)
    if cells == 100_000:
        assert found.loss == pytest.approx(best, rel=0.01)
    assert found.loss >= best - 1e-12


def test_of_equal_losses_the_cheaper_is_chosen() -> None:
    groups = [[Option(30, 0.5), Option(10, 0.5), Option(20, 0.5)]] * 3
    assert least_loss(groups, 90) == [1, 1, 1] == least_cost(groups, 2.0)


def test_a_budget_for_everything_loses_least() -> None:
    groups = drawn(3, coarse=False)
    best = math.fsum(min(option.loss for option in options) for options in groups)
    assert total(groups, least_loss(groups, 10**9)).loss == pytest.approx(best)
