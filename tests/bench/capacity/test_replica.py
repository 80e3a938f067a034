"""A simulated replica gives every token when the real scheduler would."""

import pytest
from drawn_replicas import REPLICAS, STEPS, schedules
from engine_on_a_clock import answers
from hypothesis import given, settings

from twofour.bench.capacity.profile import Around, EngineLimits, Replica
from twofour.bench.capacity.simulate import run
from twofour.bench.load.records import Part, Request
from twofour.bench.load.workload import Schedule


@settings(max_examples=300, deadline=None)
@given(REPLICAS, schedules())
def test_every_token_comes_when_the_real_scheduler_would_give_it(replica: Replica, schedule: Schedule) -> None:
    simulated = run(schedule, replica)
    taken = {r.index: r.sent_at for r in simulated.records if r.error is None and r.sent_at is not None}
    expected, scheduler = answers(replica, schedule.requests, taken)
    for record in simulated.records:
        if record.error is None:
            assert [chunk.at for chunk in record.chunks] == pytest.approx(expected[record.index].times, abs=1e-9)
            assert record.cached_tokens == expected[record.index].cached_tokens
    assert sum(usage.preemptions for usage in simulated.usage) == scheduler.preemptions


@pytest.mark.parametrize("policy", ["twofour", "vllm"])
def test_who_waits_for_blocks_gets_in_when_its_beginning_is_published(policy: str) -> None:
    limits = EngineLimits(3, 24, 4 if policy == "vllm" else 5, 3, 60, policy=policy)
    replica, shared = Replica(limits, STEPS, Around(0.0, 0.001)), [Part("a", 3)]
    asked = [Request(i, 0.0, "", tokens, 5, family="a", parts=shared) for i, tokens in enumerate((4, 7))]
    first, second = run(Schedule(asked, None, {}), replica).records
    expected, _ = answers(replica, asked, {0: 0.0, 1: 0.0})
    for record in (first, second):
        assert list(record.chunks.at) == pytest.approx(expected[record.index].times, abs=1e-9)
    assert second.cached_tokens == 3 and second.chunks.at[0] < first.chunks.at[-1]
