"""Whose time the steps took: of steps whose law is known."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofour.bench.load.step_log import Step
from twofour.bench.money.attribution import FEWEST, attribute

A, B, C, D = 8e-3, 3e-5, 6e-5, 6e-8


def steps(noise: float, law: tuple[float, float, float, float] = (A, B, C, D), count: int = 2000) -> list[Step]:
    draw, made = random.Random(1), list[Step]()
    for _ in range(count):
        prompts, answers, cached = draw.choice([0, 0, 0, 64, 500]), draw.randrange(0, 33), draw.randrange(0, 20000)
        seconds = law[0] + law[1] * prompts + law[2] * answers + law[3] * cached
        made.append(Step(prompts, answers, cached, seconds * draw.lognormvariate(0, noise)))
    return made


def by_hand(made: list[Step]) -> float:
    """The prompts' share by the law itself."""
    counted = [step for step in made if step.prefill_tokens + step.decodes]
    inputs = sum(
        B * step.prefill_tokens + A * step.prefill_tokens / (step.prefill_tokens + step.decodes) for step in counted
    )
    return inputs / sum(A + B * step.prefill_tokens + C * step.decodes + D * step.kv_tokens for step in counted)


@pytest.mark.parametrize(("noise", "within"), [(0.0, 1e-9), (0.05, 0.01)])
def test_a_known_law_is_found(noise: float, within: float) -> None:
    made = steps(noise)
    found = attribute(made)
    assert found and found.share_input == pytest.approx(by_hand(made), abs=within)
    assert found.share_input + found.share_output == 1 and found.error == pytest.approx(0.8 * noise, abs=0.01)


def test_no_factor_is_below_0() -> None:
    """A longer cache that goes with shorter steps costs nothing, instead of paying."""
    found = attribute(steps(0.0, (A, B, 0.0, 0.0)))
    faster = attribute(steps(0.0, (A, B, 0.0, -1e-8)))
    assert found and faster and faster.share_output > 0
    assert faster.share_input == pytest.approx(found.share_input, rel=0.05)


@pytest.mark.parametrize(
    "made", [[], [Step(8, 1, 9, 0.1)] * (FEWEST - 1), [Step(0, 1, 9, 0.1)] * 99, [Step(8, 0, 9, 0.1)] * 99]
)
def test_a_log_that_does_not_tell_gives_nothing(made: list[Step]) -> None:
    assert attribute(made) is None


@given(st.integers(0, 9999), st.integers(0, 90))
def test_shares_are_shares_whatever_the_log_says(seed: int, count: int) -> None:
    draw = random.Random(seed)
    made = [
        Step(
            draw.choice([0, 0, draw.randrange(512)]), draw.randrange(64), draw.randrange(9999), draw.uniform(1e-4, 1.0)
        )
        for _ in range(count)
    ]
    found = attribute(made)
    if found:
        assert -1e-9 <= found.share_input <= 1 + 1e-9 and found.share_input + found.share_output == pytest.approx(1)
