"""How long a step of an engine takes, by what it computes.

A step that computes p prompt tokens and n tokens of answers, reads v tokens of the cache and attends within prompts to
q pairs of tokens takes fixed + p prefill + n decode + v kv + q pair seconds, none of the five below 0. They are fitted
by the least squares of relative errors, so that a step of 1 ms counts as much as one of 1 s. What an error is relative
to is the step as it is predicted, found in a few passes: relative to what was measured, a few steps that seem short
would outweigh all others, and the fit would lie below the mean. A plan multiplies each step by one of `residuals`.

How sure the five are: blocks of consecutive steps are drawn with replacement, as neighbours are alike, and each such
log is fitted anew.
"""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any

import numpy as np

from twofour.bench.capacity import hull
from twofour.bench.capacity.hull import Hull
from twofour.bench.load.step_log import Step
from twofour.bench.stats import nonnegative
from twofour.prune.errors import InputError

FEWEST = 200  # steps
DRAWS = 100
_BLOCKS = 64
_QUANTILES = 100
_PASSES = 4
_LEAST = 0.01  # of the median step: nothing is predicted to take less

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class StepModel:
    """Seconds."""

    fixed_s: float  # weights that are read, whatever the step computes
    prefill_s: float  # for each prompt token
    decode_s: float  # for each sequence that decodes
    kv_s: float  # for each token of the cache that a decoding sequence attends to
    pair_s: float = 0.0  # for each pair of a prompt token and a token that it attends to

    def seconds(self, prefill: int, decodes: int, kv: int, pairs: int) -> float:
        return self.fixed_s + self.prefill_s * prefill + self.decode_s * decodes + self.kv_s * kv + self.pair_s * pairs


@dataclass(frozen=True)
class Fit:
    """error: by how much it misses a step on average, as a share of what it predicts."""

    steps: StepModel
    draws: Sequence[StepModel]
    residuals: Sequence[float]  # measured over predicted seconds, ascending, equally likely
    error: float
    hull: Hull
    count: int


def fit(log: Sequence[Step], seed: int = 0) -> Fit:
    """Raises InputError where the log does not tell."""
    counted = [step for step in log if step.seconds > 0 and step.prefill_tokens + step.decodes > 0]
    if len(counted) < FEWEST:
        raise InputError(f"{len(counted)} steps say too little; measure for longer, {FEWEST} at least")
    count, prefill, decodes, kv, pairs, seconds = map(np.array, zip(*map(_row, counted), strict=True))
    if not prefill.any() or not decodes.any():
        raise InputError(
            "no step computed a prompt, or none an answer; measure with prompts and answers of several tokens"
        )
    terms = np.column_stack([count, prefill, decodes, kv, pairs])
    weights = _weights(terms, seconds)
    found = _solved(*_normal(terms * weights[:, None], seconds * weights))
    ratios = seconds / np.maximum(terms @ astuple(found), _LEAST * np.median(seconds))
    return Fit(
        found,
        _draws(terms * weights[:, None], seconds * weights, seed),
        tuple(map(float, np.quantile(ratios, (np.arange(_QUANTILES) + 0.5) / _QUANTILES))),
        float(np.mean(np.abs(ratios - 1))),
        hull.around(decodes / count, prefill / count, kv / count),
        len(counted),
    )


def _row(step: Step) -> tuple[float, ...]:
    return step.count, step.prefill_tokens, step.decodes, step.kv_tokens, step.prefill_pairs, step.seconds


def _weights(terms: Array, seconds: Array) -> Array:
    """1 over what each step is predicted to take."""
    predicted = np.full(len(seconds), np.median(seconds))
    for _ in range(_PASSES):
        found = _solved(*_normal(terms / predicted[:, None], seconds / predicted))
        predicted = np.maximum(terms @ astuple(found), _LEAST * np.median(seconds))
    return 1 / predicted


def _normal(terms: Array, goal: Array) -> tuple[Array, Array]:
    """The normal equations."""
    return terms.T @ terms, terms.T @ goal


def _solved(gram: Array, right: Array) -> StepModel:
    return StepModel(*nonnegative(gram, right))


def _draws(terms: Array, goal: Array, seed: int) -> tuple[StepModel, ...]:
    parts = min(_BLOCKS, len(terms))
    blocks = [_normal(*block) for block in zip(np.array_split(terms, parts), np.array_split(goal, parts), strict=True)]
    grams, rights = np.stack([gram for gram, _ in blocks]), np.stack([right for _, right in blocks])
    counts = np.random.default_rng(seed).multinomial(len(blocks), [1 / len(blocks)] * len(blocks), size=DRAWS)
    return tuple(_solved(np.tensordot(count, grams, 1), count @ rights) for count in counts)
