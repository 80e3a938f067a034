"""The search on machines whose truth is known, and the fleet against brute force."""

from dataclasses import replace
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import LIMITS, STEPS, Machines, profile, traffic

from twofour.bench.capacity import search
from twofour.bench.capacity.demand import Demand, demand
from twofour.bench.capacity.search import CAPACITY, Promise, World
from twofour.bench.load import slo
from twofour.bench.traffic.traffic import Rate

REPLICA = profile().replica
EVEN = replace(traffic(8.0, 10, 2), rate=Rate(8.0, shape=None))


def world(promised: str, machines: Machines, asked: Demand | None = None) -> World:
    return World(REPLICA, asked or demand(EVEN), Promise(slo.parse(promised)), 120, 0, machines)


def test_the_highest_rate_is_the_known_one() -> None:
    # wait / (1 - rate / 20) is 4 waits where rate is 15.
    asked = world("ttft_p95=400ms,itl_p95=500ms", Machines(20.0, 0.1))
    found = search.highest_rate(asked, 0.02)
    assert found.low is not None and found.high is not None
    assert found.low <= 15 * (1 + 1e-9) and 15 <= found.high <= found.low * 1.02 * (1 + 1e-9)
    assert search.binding(asked, found) == "ttft_p95"
    assert [each.rate for each in asked.curve] == sorted(rate for rate, _ in asked.trials)


def test_nothing_is_simulated_twice() -> None:
    machines = Machines(20.0, 0.1)
    asked = world("ttft_p95=400ms", machines)
    assert asked.trial(3.0) is asked.trial(3.0) and len(machines.asked) == 1


def test_a_rate_beyond_the_machine_is_not_kept_however_lax_the_promise() -> None:
    asked = world("e2e_p95=1000s", Machines(1e9, 0.001))
    found = search.highest_rate(asked, 0.02)
    assert found.low == pytest.approx(search.ceiling(asked), rel=0.03) and search.binding(asked, found) == CAPACITY


def test_the_ceiling_of_a_full_machine_by_hand() -> None:
    asked = world("ttft=1s", Machines(1.0, 1.0), demand(traffic(8.0, 64, 16)))
    # 16 places; each of 64 prompt tokens takes 20 us, of 15 further tokens its share of 10 ms, 200 us and 72 reads.
    seconds = 64 * 2e-5 + 15 * (0.01 / 16 + 2e-4 + 72e-8)
    assert search.ceiling(asked) == pytest.approx(1.02 / seconds)
    cramped = replace(asked, replica=replace(REPLICA, limits=replace(LIMITS, kv_blocks=10)), trials={})
    assert search.ceiling(cramped) == pytest.approx(1.02 / (64 * 2e-5 + 15 * (0.01 / 2 + 2e-4 + 72e-8)))
    assert STEPS.pair_s == 0


@settings(deadline=None, max_examples=12)
@given(peak=st.floats(1, 60), guess=st.integers(1, 12))
def test_the_smallest_fleet_is_that_of_brute_force(peak: float, guess: int) -> None:
    asked = world("ttft_p95=400.001ms", Machines(8.0, 0.1), demand(EVEN))
    each = 6.0  # 4 waits at 6 of 8; a little more, as 6 itself may be rounded either way
    needed = next(count for count in range(1, 100) if asked.kept(peak, count))
    assert needed == max(1, ceil(peak / each - 1e-6))
    found = search.smallest_fleet(asked, peak, guess)
    assert found == (needed if needed <= 2 * guess + 8 else None)


def test_a_fleet_that_no_number_makes_good() -> None:
    assert search.smallest_fleet(world("ttft=50ms", Machines(8.0, 0.1)), 8.0, 1) is None


def test_a_fleet_is_simulated_with_requests_for_each() -> None:
    assert search.fleet_requests(1000, 2) == 1000 and search.fleet_requests(1000, 10) == 1500
    assert search.guess(10.0, 2.5) == 4 and search.guess(10.1, 2.5) == 5 and search.guess(0.1, 2.5) == 1
