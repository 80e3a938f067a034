"""Fits of logs whose law is known."""

import random
from dataclasses import astuple
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofour.bench.capacity.step_model import FEWEST, StepModel, fit
from twofour.bench.load.step_log import Step
from twofour.bench.stats import nonnegative
from twofour.prune.errors import InputError

LAW = StepModel(8e-3, 3e-5, 6e-5, 6e-8, 2e-9)


def log(noise: float, count: int = 3000, seed: int = 1) -> list[Step]:
    draw, made = random.Random(seed), list[Step]()
    for _ in range(count):
        p, n, v = draw.choice([0, 0, 64, 500, 2000]), draw.randrange(1, 33), draw.randrange(32, 40_000)
        q = p * draw.randrange(0, 2000) + p * (p + 1) // 2
        made.append(Step(p, n, v, LAW.seconds(p, n, v, q) * draw.lognormvariate(0, noise), q))
    return made


def test_a_known_law_is_found() -> None:
    exact, noisy = fit(log(0.0)), fit(log(0.05))
    assert astuple(exact.steps) == pytest.approx(astuple(LAW), rel=1e-6)
    assert astuple(noisy.steps) == pytest.approx(astuple(LAW), rel=0.15)
    assert exact.error < 1e-9 and noisy.error == pytest.approx(0.8 * 0.05, rel=0.1)


def test_what_is_drawn_is_right_on_average() -> None:
    """Relative least squares lie below the mean: the residuals make up for it."""
    noisy = log(0.3)
    found = fit(noisy)
    predicted = [
        found.steps.seconds(s.prefill_tokens, s.decodes, s.kv_tokens, s.prefill_pairs) * np.mean(found.residuals)
        for s in noisy
    ]
    assert sum(predicted) == pytest.approx(sum(s.seconds for s in noisy), rel=0.02)


def test_the_draws_scatter_around_the_law_as_fits_of_other_logs_do() -> None:
    drawn = np.array([astuple(each) for each in fit(log(0.1)).draws])
    others = np.array([astuple(fit(log(0.1, seed=seed)).steps) for seed in range(2, 22)])
    assert drawn.std(axis=0)[:2] == pytest.approx(others.std(axis=0)[:2], rel=0.6)
    assert fit(log(0.1), seed=3).draws == fit(log(0.1), seed=3).draws != fit(log(0.1), seed=4).draws


@given(st.integers(0, 10_000))
def test_the_least_squares_without_a_negative_are_those_of_a_grid(seed: int) -> None:
    draw = np.random.default_rng(seed)
    terms = draw.normal(size=(20, 2)) * (1.0, 1e6)
    found = np.array(nonnegative(terms.T @ terms, terms.sum(axis=0)))
    least = float(((terms @ found - 1) ** 2).sum())
    grid = np.array(list(product(np.linspace(0, 1, 21), repeat=2))) * (1.0, 1e-6)
    assert (found >= 0).all() and least <= ((terms @ grid.T - 1) ** 2).sum(axis=0).min() + 1e-9


@pytest.mark.parametrize(
    "steps", [[], log(0.0, FEWEST - 1), [Step(0, 1, 9, 0.1)] * FEWEST, [Step(9, 0, 9, 0.1)] * FEWEST]
)
def test_a_log_that_does_not_tell_is_refused(steps: list[Step]) -> None:
    with pytest.raises(InputError, match="measure"):
        fit(steps)
