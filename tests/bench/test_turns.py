"""Whose turn it is: by rounds, in which order, and what an interrupt leaves."""

from itertools import permutations

import pytest

from twofour.bench.turns import alternate, order

NAMES = ["a", "b", "c"]


def test_over_six_rounds_three_take_all_their_orders() -> None:
    orders = [order(NAMES, round_) for round_ in range(6)]
    assert sorted(map(tuple, orders)) == sorted(permutations(NAMES))
    assert all(orders[round_ + 1] == orders[round_][::-1] for round_ in (0, 2, 4))


def test_of_two_each_is_first_half_of_the_time() -> None:
    assert [order(NAMES[:2], round_)[0] for round_ in range(4)] == ["a", "b", "b", "a"]


@pytest.mark.parametrize("several", range(1, 7))
def test_what_drifts_evenly_meets_all_alike_over_two_rounds(several: int) -> None:
    names = list(range(several))
    for round_ in range(0, 2 * several, 2):
        places = [order(names, each) for each in (round_, round_ + 1)]
        assert {places[0].index(name) + places[1].index(name) for name in names} == {several - 1}


def test_everyone_has_one_turn_in_each_round() -> None:
    log: list[str] = []
    found = alternate({name: lambda name=name: log.append(name) or len(log) for name in NAMES}, range(2))
    assert log == [*"abc", *"cba"] and found == {"a": [1, 6], "b": [2, 5], "c": [3, 4]}
