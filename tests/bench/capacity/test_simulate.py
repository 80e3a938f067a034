"""When requests are sent, by timelines made by hand; and what no simulation may lose."""

from dataclasses import replace
from itertools import pairwise

import pytest
from drawn_replicas import REPLICAS, schedules
from hypothesis import given
from hypothesis import strategies as st

from twofour.bench.capacity.profile import Around, EngineLimits, Replica
from twofour.bench.capacity.router import ROUTERS
from twofour.bench.capacity.simulate import run, simulate
from twofour.bench.capacity.step_model import StepModel
from twofour.bench.load.metrics import summarise
from twofour.bench.load.records import Part, Record, Request
from twofour.bench.load.workload import Limits, Schedule
from twofour.prune.errors import InputError

SECOND = Replica(EngineLimits(8, 64, 100, 4, 100), StepModel(1.0, 0.0, 0.0, 0.0), Around(0.0, 0.0))  # each step


def asked(*at: float, tokens: int = 1) -> list[Request]:
    return [Request(index, each, "", 4, tokens) for index, each in enumerate(at)]


def spans(records: list[Record]) -> list[tuple[float | None, float | None]]:
    return [(record.sent_at, record.done_at) for record in records]


def test_an_open_loop_joins_the_step_that_begins_after_it() -> None:
    records = simulate(Schedule(asked(0.0, 0.5, 5.0), None, {}), SECOND)
    assert spans(records) == [(0.0, 1.0), (0.5, 2.0), (5.0, 6.0)]


def test_what_lies_around_the_steps_counts() -> None:
    around = replace(SECOND, around=Around(first_s=0.25, between_s=0.5))
    records = simulate(Schedule(asked(0.0, 1.4, 1.6, tokens=3), None, {}), around)
    assert [chunk.at for chunk in records[0].chunks] == [1.25, 2.75, 4.25]  # steps begin at 0.25, 1.75 and 3.25
    assert [record.chunks[0].at for record in records[1:]] == [2.75, 4.25]


def test_a_turn_leaves_after_the_one_before_and_a_pause() -> None:
    turns = [*asked(0.0), Request(1, 0.0, "", 9, 2, after=0, think_s=3.0), Request(2, 0.0, "", 12, 1, after=1)]
    assert spans(simulate(Schedule(turns, None, {}), SECOND)) == [(0.0, 1.0), (4.0, 6.0), (6.0, 7.0)]
    late = Schedule(turns, None, {}, Limits(duration_s=5.0))
    assert spans(simulate(late, SECOND)) == [(0.0, 1.0), (4.0, 6.0)]


def test_the_workers_of_a_closed_loop_start_spread_over_the_first_answer() -> None:
    records = simulate(Schedule(asked(*[0.0] * 6, tokens=4), 4, {}), SECOND)
    assert [record.sent_at for record in records] == [0.0, 4.0, 5.0, 6.0, 7.0, 8.0]
    stopped = Schedule(asked(*[0.0] * 6, tokens=4), 4, {}, Limits(duration_s=6.5))
    assert [record.sent_at for record in simulate(stopped, SECOND)] == [0.0, 4.0, 5.0, 6.0]


def test_a_worker_stays_with_its_session() -> None:
    turns = [
        Request(0, 0.0, "", 4, 1),
        Request(1, 0.0, "", 6, 1, after=0, think_s=1.0),
        Request(2, 0.0, "", 4, 1),
    ]
    assert spans(simulate(Schedule(turns, 1, {}), SECOND)) == [(0.0, 1.0), (2.0, 3.0), (3.0, 4.0)]


def test_what_is_due_waits_while_so_many_are_in_flight() -> None:
    records = simulate(Schedule(asked(0.0, 0.1, 0.2, 0.3), None, {}, Limits(max_in_flight=2)), SECOND)
    assert spans(records) == [(0.0, 1.0), (0.1, 2.0), (1.0, 2.0), (2.0, 3.0)]
    assert [(record.scheduled_at, record.held) for record in records] == [
        *((0.0, False), (0.1, False), (0.2, True), (0.3, True))
    ]


def test_the_residuals_are_drawn_by_the_seed() -> None:
    noisy, load = replace(SECOND, residuals=(0.5, 1.5)), Schedule(asked(0.0, tokens=40), None, {})
    one, same, other = (simulate(load, noisy, seed=seed)[0].chunks for seed in (1, 1, 2))
    assert one == same != other
    lasts = {round(after.at - before.at, 9) for before, after in pairwise(one)}
    assert lasts == {0.5, 1.5}


def test_what_never_fits_is_refused_as_the_server_would() -> None:
    (record,) = simulate(Schedule([Request(0, 1.0, "", 90, 11)], None, {}), SECOND)
    assert (record.error, record.status, record.done_at) == ("HTTP 400: 101 tokens do not fit into 100", 400, 1.0)


@given(REPLICAS, schedules(), st.integers(1, 4), st.sampled_from(list(ROUTERS)))
def test_every_token_comes_once_whatever_the_fleet(
    replica: Replica, schedule: Schedule, count: int, router: str
) -> None:
    simulated = run(schedule, replica, count, router)
    assert [record.index for record in simulated.records] == [request.index for request in schedule.requests]
    good = [record for record in simulated.records if record.error is None]
    for record in good:
        times = [chunk.at for chunk in record.chunks]
        assert len(times) == record.output_tokens
        assert times == sorted(set(times))
        assert record.sent_at is not None and record.sent_at + replica.around.first_s < times[0]
    assert sum(usage.requests for usage in simulated.usage) == len(good)
    assert sum(usage.busy_s for usage in simulated.usage) >= sum(usage.steps for usage in simulated.usage) * 0.01
    assert summarise(simulated.records, 0.0).completed == len(good)


@given(REPLICAS, schedules())
def test_a_fleet_of_one_is_one(replica: Replica, schedule: Schedule) -> None:
    alone = run(schedule, replica)
    assert all(run(schedule, replica, 1, router) == alone for router in ROUTERS)


def test_routers() -> None:
    """One long answer, and short ones that each end before the next comes."""
    load = [*asked(0.0, tokens=20), *(Request(i, i * 3.0, "", 4, 1) for i in range(1, 6))]

    def served(router: str, count: int) -> list[int]:
        return [usage.requests for usage in run(Schedule(load, None, {}), SECOND, count, router).usage]

    assert served("round_robin", 3) == [2, 2, 2]
    assert served("least_loaded", 3) == [1, 5, 0]
    assert sorted(served("power_of_two", 2)) == [1, 5]  # of two, both are drawn
    assert sorted(served("random", 2)) != [1, 5]


def test_affinity_sends_a_family_where_its_prefix_lies() -> None:
    family = [Request(i, i * 3.0, "", 40, 1, family=f, parts=(Part(f, 32),)) for i, f in enumerate("abcabcabcabc")]
    apart, together = (
        sum(usage.cached_tokens for usage in run(Schedule(family, None, {}), SECOND, 4, router).usage)
        for router in ("round_robin", "prefix_affinity")
    )
    assert (apart, together) == (0, 9 * 32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"router": "best"}, "no router is called 'best'"),
        ({"count": 0}, "0 replicas serve nothing"),
        ({"replica": replace(SECOND, limits=replace(SECOND.limits, kv_blocks=0))}, "serves nothing"),
        (
            {"schedule": Schedule([Request(0, 0.0, "hello", None, 1)], None, {})},
            "does not say how long its prompts are",
        ),
    ],
)
def test_refusals(change: dict[str, object], said: str) -> None:
    arguments: dict[str, object] = {"schedule": Schedule(asked(0.0), None, {}), "replica": SECOND} | change
    with pytest.raises(InputError, match=said):
        simulate(**arguments)  # type: ignore[arg-type]
