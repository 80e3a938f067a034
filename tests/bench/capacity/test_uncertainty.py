"""How sure a plan is: intervals of one more run, and worlds that differ."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import LIMITS, Machines, profile, traffic

from twofour.bench.capacity.demand import demand
from twofour.bench.capacity.search import Promise, World
from twofour.bench.capacity.uncertainty import Spread, interval, spread, sureness
from twofour.bench.load import slo
from twofour.bench.traffic.traces import Row, Trace
from twofour.bench.traffic.traffic import Rate, Traffic


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


@pytest.mark.parametrize("timed", [False, True])
def test_a_part_of_those_that_take_turns_gets_what_it_gets_of_the_whole(timed: bool) -> None:
    rows = Trace("t.csv", [Row(number * 0.1, 40, 6) for number in range(90)], 0)
    asked = demand(Traffic(requests=None, trace=rows)) if timed else demand(traffic(9.0, 40, 6))
    world = World(profile().replica, asked, Promise(slo.parse("ttft_p95=400ms")), 60)
    found, whole = world.part(9.0, 6), asked.schedule(9.0, 1000, 0).requests
    assert found.count == 4
    due = [each.at_s for place, each in enumerate(whole) if place % 6 < 4]
    assert [record.scheduled_at for record in found.found.records] == pytest.approx(due[: len(found.found.records)])
    assert len(found.found.records) == (60 if timed else 600)
    assert world.part(9.0, 3).found.records == world.trial(9.0, 3).found.records


def test_a_part_behind_a_router_that_looks_gets_its_part_of_the_rate() -> None:
    promise = Promise(slo.parse("ttft_p95=400ms"), "least_loaded")
    world = World(profile().replica, demand(traffic(9.0, 40, 6)), promise, 60)
    at = [record.scheduled_at for record in world.part(9.0, 6).found.records]
    assert at == pytest.approx([each.at_s for each in world.demand.schedule(6.0, 600, 0).requests])


def test_requests_that_are_refused_in_other_worlds_are_counted() -> None:
    replica = replace(profile().replica, limits=replace(LIMITS, context_length=30))
    world = World(replica, demand(traffic(8.0, 20, 20)), Promise(slo.parse("ttft_p95=400ms")), 60)
    assert sureness([world], 8.0, 1).refused == 150


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
