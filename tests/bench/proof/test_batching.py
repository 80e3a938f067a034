import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofour.bench.proof.batching import Batch, Steps
from twofour.bench.proof.simulation import Answered, Asked, closed_loop, noise, open_loop, poisson

STEPS = Steps(base_s=0.008, read_s=30e-6, decode_s=60e-6, sequences=4, reads=100)


def token_by_token(steps: Steps, asked: list[Asked]) -> list[Answered]:
    """What `simulation` does, with a token for every sequence in every step."""
    batch, now, coming, came = Batch(steps), 0.0, list(enumerate(asked)), dict[int, list[float]]()
    while coming or not batch.idle:
        if batch.idle:
            now = max(now, coming[0][1].at_s)
        while coming and coming[0][1].at_s <= now:
            key, each = coming.pop(0)
            batch.add(key, each.prompt, each.output)
        now += batch.begin()
        for key in batch.end():
            came.setdefault(int(str(key)), []).append(now)
    assert [len(came[key]) for key in range(len(asked))] == [each.output for each in asked]
    return [Answered(each.at_s, came[key][0], came[key][-1], each.output) for key, each in enumerate(asked)]


ASKED = st.lists(
    st.builds(Asked, st.floats(0, 0.5), st.integers(1, 250), st.integers(1, 9)), min_size=1, max_size=12
).map(sorted)


@given(ASKED)
def test_the_fast_way_is_the_slow_way(asked: list[Asked]) -> None:
    fast = open_loop(STEPS, asked)
    assert sorted(fast) == sorted(token_by_token(STEPS, asked))


def test_a_step_by_hand() -> None:
    batch = Batch(Steps(1.0, 0.01, 0.1, sequences=2, reads=10))
    for key, prompt, output in (("a", 4, 2), ("b", 16, 1), ("c", 1, 1)):
        batch.add(key, prompt, output)
    assert (batch.begin(), batch.end()) == (pytest.approx(1.1), ["a"])  # a whole, and the first six of b
    assert (batch.begin(), batch.end()) == (pytest.approx(1.0 + 0.1 + 0.1), ["a", "b"])  # the last ten of b
    assert (batch.begin(), batch.end()) == (pytest.approx(1.01), ["c"])  # there was no place before
    assert batch.idle


def test_who_is_dropped_takes_no_more_time() -> None:
    batch = Batch(STEPS)
    batch.add("running", 1, 5)
    batch.begin()
    batch.end()
    batch.drop("running")
    batch.add("waiting", 1, 1)
    batch.drop("waiting")
    assert batch.idle


@pytest.mark.parametrize(("prompt", "output"), [(10, 20), (40, 8), (5, 60)])
def test_capacity_is_what_a_closed_loop_reaches(prompt: int, output: int) -> None:
    steps = Steps(0.008, 30e-6, 60e-6, sequences=16, reads=4096)
    asked = [Asked(0.0, prompt, output)] * 4000
    answered = closed_loop(steps, asked, 64)
    reached = len(answered) / answered[-1].last_at
    assert reached == pytest.approx(steps.capacity(prompt, output), rel=0.02)


def test_beyond_capacity_the_line_grows_and_below_it_does_not() -> None:
    capacity = STEPS.capacity(40, 16)

    def late(rate: float) -> float:
        answered = sorted(open_loop(STEPS, poisson(4000, rate, 1, 40, 16)))
        half = len(answered) // 2
        return sum(each.ttft for each in answered[half:]) / sum(each.ttft for each in answered[:half])

    assert late(1.1 * capacity) > 2
    assert late(0.7 * capacity) < 1.2


def test_noise_is_seeded_and_makes_the_same_load_take_other_times() -> None:
    asked = poisson(50, 20.0, 3, 40, 16)
    once, again, other = (open_loop(STEPS, asked, noise(seed, 0.02)) for seed in (1, 1, 2))
    assert once == again != other
    assert poisson(50, 20.0, 4, 40, 16) != asked
