"""How sure a plan is: intervals of one more run, and worlds that differ."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import Machines, profile, traffic

from twofour.bench.capacity.demand import demand
from twofour.bench.capacity.search import Promise, World
from twofour.bench.capacity.uncertainty import Spread, interval, part, spread, sureness
from twofour.bench.load import slo
from twofour.bench.traffic.traffic import Rate


@given(st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=60))
def test_as_many_values_lie_outside_as_the_share_allows(values: list[float]) -> None:
    low, high = interval(values)
    outside = sum(value < low or value > high for value in values)
    assert low <= high or len(values) < 2
    assert outside <= max(0, (len(values) + 1) * 0.1 - 2 + 1e-9)


def test_one_more_value_lies_within_in_nine_of_ten_cases() -> None:
    draw = random.Random(1)
    hits = 0
    for _ in range(4000):
        low, high = interval([draw.expovariate(1.0) for _ in range(19)])
        hits += low <= draw.expovariate(1.0) <= high
    assert 0.88 < hits / 4000 < 0.92  # 18 of 20; four standard errors are 2 %


def test_what_lies_beyond_is_more_than_all_that_is_known() -> None:
    assert spread([1, None, 3]) == Spread(1, None, 3)


def test_a_part_of_a_fleet_gets_its_part() -> None:
    assert part(12.0, 3) == (12.0, 3) and part(12.0, 6) == (8.0, 4)


def worlds(capacities: list[float]) -> list[World]:
    asked, promise = (
        demand(replace(traffic(8.0, 10, 2), rate=Rate(8.0, shape=None))),
        Promise(slo.parse("ttft_p95=400ms")),
    )
    return [World(profile().replica, asked, promise, 200, 0, Machines(each, 0.1)) for each in capacities]


def test_each_world_has_its_own_answer() -> None:
    # Each replica keeps it up to three quarters of its capacity: 16 a second need two, two and three of them.
    found = sureness(worlds([12.0, 11.0, 7.9]), 16.0, 2)
    assert found.holds == pytest.approx(2 / 3) and found.replicas == Spread(2, 3, 3)
    first = found.found_s["ttft_p95"]
    assert first.low is not None and first.low == pytest.approx(0.3) and first.high is None
