"""Whose time the steps of a server took, prompts' or answers': a fit of its step log.

A step that computes p prompt tokens and n tokens of answers, with v tokens in the cache, takes a + b p + c n + d v
seconds, none of the four below 0: the least squares of relative errors. Prompts cost b p, answers c n + d v. What every
step costs, a, which is weights that are read, is shared by its tokens: p of p + n are the prompts'. With the
shares of both, and Ti and To tokens a second, a million input tokens cost 1e6 C share_in / Ti, a million output tokens
1e6 C share_out / To, where C is dollars a second: Ti of the one and To of the other are C again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from typing import Any

import numpy as np

FEWEST = 32  # steps, of which a fit says anything


@dataclass(frozen=True)
class Step:
    prefill_tokens: int
    decodes: int
    kv_tokens: int
    seconds: float


@dataclass(frozen=True)
class Attribution:
    """error: by how much the fit misses a step on average, as a share of what it took."""

    share_input: float
    share_output: float
    steps: int
    error: float


def attribute(steps: Sequence[Step]) -> Attribution | None:
    """None where the log does not tell: too few steps, or none with prompts, or none with answers."""
    counted = [step for step in steps if step.seconds > 0 and step.prefill_tokens + step.decodes > 0]
    prompts, answers, cached, seconds = (np.array(column, float) for column in _columns(counted))
    if len(counted) < FEWEST or not prompts.any() or not answers.any():
        return None
    terms = np.column_stack([np.ones(len(counted)), prompts, answers, cached])
    fixed, prompt_s, answer_s, cached_s = _fitted(terms / seconds[:, None])
    of_prompts = prompt_s * prompts + fixed * prompts / (prompts + answers)
    of_answers = answer_s * answers + cached_s * cached + fixed * answers / (prompts + answers)
    whole = float((of_prompts + of_answers).sum())
    error = float(np.mean(np.abs((of_prompts + of_answers) / seconds - 1)))
    share = float(of_prompts.sum()) / whole
    return Attribution(share, 1 - share, len(counted), error)


def _columns(steps: Sequence[Step]) -> list[list[float]]:
    rows = [(step.prefill_tokens, step.decodes, step.kv_tokens, step.seconds) for step in steps]
    return [[row[column] for row in rows] for column in range(4)]


def _fitted(terms: "np.ndarray[Any, Any]") -> list[float]:
    """The factors, none below 0, by which the terms add up nearest to 1: the best set of terms without a negative."""
    width, best, least = terms.shape[1], [0.0] * terms.shape[1], np.inf
    for chosen in map(list, chain.from_iterable(combinations(range(width), size) for size in range(1, width + 1))):
        found, *_ = np.linalg.lstsq(terms[:, chosen], np.ones(len(terms)), rcond=None)
        missed = float(((terms[:, chosen] @ found - 1) ** 2).sum())
        if (found >= 0).all() and missed < least:
            least, best = missed, [0.0] * width
            for column, factor in zip(chosen, found, strict=True):
                best[column] = float(factor)
    return best
