"""The search on machines whose truth is known, and the fleet against brute force."""

from dataclasses import replace
from math import ceil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plans import LIMITS, STEPS, Machines, profile, traffic

from twofour.bench.capacity import search, simulate
from twofour.bench.capacity.demand import Demand, demand
from twofour.bench.capacity.profile import Replica
from twofour.bench.capacity.search import CAPACITY, Promise, World
from twofour.bench.load import slo
from twofour.bench.traffic.traffic import Rate, Traffic
from twofour.prune.errors import InputError

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
    assert [each.rate for each in asked.curve] == sorted(rate for rate, _, _ in asked.trials)


def test_nothing_is_simulated_twice() -> None:
    machines = Machines(20.0, 0.1)
    asked = world("ttft_p95=400ms", machines)
    assert asked.trial(3.0) is asked.trial(3.0) and len(machines.asked) == 1


def test_a_rate_beyond_the_machine_is_not_kept_however_lax_the_promise() -> None:
    asked = world("e2e_p95=1000s", Machines(1e9, 0.001))
    found = search.highest_rate(asked, 0.02)
    assert found.low == pytest.approx(asked.ceiling, rel=0.03) and search.binding(asked, found) == CAPACITY


def test_the_bound_by_hand() -> None:
    asked = world("ttft=1s", Machines(1.0, 1.0), demand(traffic(8.0, 64, 16)))
    # 16 places; each of 64 prompt tokens takes 20 us, of 16 tokens its share of 10 ms, 200 us and 72 reads.
    assert search.bound(asked) == pytest.approx(1.02 / (64 * 2e-5 + 16 * (0.01 / 16 + 2e-4 + 72e-8)))
    cramped = replace(asked, replica=replace(REPLICA, limits=replace(LIMITS, kv_blocks=9)), trials={})
    assert search.bound(cramped) == pytest.approx(1.02 / (64 * 2e-5 + 16 * (0.01 / 2 + 2e-4 + 72e-8)))
    assert STEPS.pair_s == 0


def served(traffic: Traffic, replica: Replica = REPLICA) -> float:
    """Requests a second that one replica ends of far more than it can."""
    schedule = replace(traffic, requests=4000, rate=Rate(1000.0)).sketch()
    ends = sorted(each.done_at or 0.0 for each in simulate.simulate(schedule, replica))
    return 2000 / (ends[3000] - ends[1000])


@pytest.mark.parametrize(
    ("asked", "blocks"),
    [
        (traffic(8.0, 64, 16), 400),
        (traffic(8.0, 100, 500), 100),  # a sequence holds half of its answer in the mean
        (replace(traffic(8.0, 512, 16), shared_prefix=0.9), 100),  # what is shared lies in the cache once
        (replace(traffic(8.0, 64, 16), shared_prefix=0.05), 400),
    ],
)
def test_the_ceiling_is_what_a_full_machine_serves(asked: Traffic, blocks: int) -> None:
    replica = replace(REPLICA, limits=replace(LIMITS, kv_blocks=blocks))
    found = World(replica, demand(asked), Promise(slo.parse("e2e_p95=1000s")), 400)
    assert found.ceiling / served(asked, replica) == pytest.approx(1.0, rel=0.05)
    assert not found.kept(1.1 * found.ceiling) and found.kept(0.9 * found.ceiling)


def test_another_world_takes_from_the_first_how_near_to_its_bound_a_machine_comes() -> None:
    asked = demand(replace(traffic(8.0, 512, 16), shared_prefix=0.9))
    first = World(REPLICA, asked, Promise(slo.parse("e2e_p95=1000s")), 400)
    slower = replace(REPLICA, steps=STEPS.__class__(0.02, 4e-5, 4e-4, 2e-8))
    other = World(slower, asked, first.promise, 400, like=first)
    assert other.ceiling == pytest.approx(first.ceiling / 2)


def test_steps_that_take_no_time_bound_nothing() -> None:
    free = replace(REPLICA, steps=STEPS.__class__(0.0, 0.0, 0.0, 0.0))
    with pytest.raises(InputError, match="takes no time"):
        _ = World(free, demand(traffic(8.0, 64, 1)), Promise(slo.parse("ttft=1s")), 60).ceiling


def test_answers_of_one_token_with_shared_prompts_have_a_limit() -> None:
    asked = demand(replace(traffic(8.0, 64, 1), shared_prefix=0.5))
    found = search.highest_rate(World(REPLICA, asked, Promise(slo.parse("ttft_p95=10s")), 200), 0.02)
    assert found.low and found.high


def test_many_are_tried_as_a_part_before_they_are_tried_as_a_whole() -> None:
    machines = Machines(8.0, 0.1)
    asked = world("ttft_p95=400ms", machines, demand(EVEN))
    assert search.smallest_fleet(asked, 59.0, 16) == 10
    assert [count for _, count in machines.asked if count > 4] == [10, 9]


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
