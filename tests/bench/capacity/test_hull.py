import pytest

from twofour.bench.capacity import hull, reach, simulate
from twofour.bench.capacity.profile import Around, EngineLimits, Profile, Replica
from twofour.bench.capacity.step_model import StepModel
from twofour.bench.load.records import Request
from twofour.bench.load.workload import Schedule

STEPS = StepModel(0.01, 2e-5, 2e-4, 1e-8)


def test_it_is_the_most_of_each_by_itself() -> None:
    assert hull.around([16, 0, 1], [0, 1000, 0], [1600, 0, 100]).largest == (16, 1000, 1600)


@pytest.mark.parametrize(
    ("decodes", "prefill", "kv", "said"),
    [
        (2, 40, 50, []),
        (0.5, 40, 50, ["2 sequences at a time, and 0 were measured"]),
        (2, 20, 50, ["40 prompt tokens in a step, and 20 were measured"]),
        (2, 40, 40, ["50 tokens of the cache attended to in a step, and 40 were measured"]),
    ],
)
def test_what_steps_ask_for_is_held_against_what_steps_were_measured(
    decodes: float, prefill: float, kv: float, said: list[str]
) -> None:
    """Two prompts of 20 tokens make one step of 40. The last step attends to 25 of each; blocks hold more."""
    replica = Replica(EngineLimits(8, 512, 100, 64, 1000), STEPS, Around(0.0, 0.0))
    asked = Schedule([Request(i, 0.0, "", 20, 6) for i in range(2)], None, {})
    usage = simulate.run(asked, replica).usage
    assert (usage[0].most_prefill, usage[0].most_attended) == (40, 50)
    known = Profile("a", "m", replica, hull.around([decodes], [prefill], [kv]))
    assert list(reach.beyond(known, usage)) == said


def test_the_step_before_a_preemption_counts() -> None:
    """Both grow to 16 tokens, all that 8 blocks hold; then one goes on alone, to 27."""
    replica = Replica(EngineLimits(8, 512, 8, 4, 1000, prefix_cache=False), STEPS, Around(0.0, 0.0))
    asked = Schedule([Request(i, 0.0, "", 8, 20) for i in range(2)], None, {})
    (usage,) = simulate.run(asked, replica).usage
    assert (usage.preemptions, usage.most_attended) == (1, 32)
