"""Whose time the steps of a server took, prompts' or answers': a fit of its step log.

A step that computes p prompt tokens and n tokens of answers, which attend to v tokens in the cache, and within prompts
to q pairs of tokens, takes a + b p + c n + d v + e q seconds, none of the five below 0: the least squares of relative
errors. Prompts cost b p + e q, answers c n + d v. What every step costs, a, which is weights that are read, is shared
by its tokens: p of p + n are the prompts'. With the shares of both, and Ti and To tokens a second, a million input
tokens cost 1e6 C share_in / Ti, a million output tokens 1e6 C share_out / To, where C is dollars a second: Ti of the
one and To of the other are C again.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from twofour.bench.load.step_log import Step
from twofour.bench.stats import nonnegative

FEWEST = 32  # steps, of which a fit says anything


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
    prompts, answers, cached, pairs, seconds = (np.array(column, float) for column in _columns(counted))
    if len(counted) < FEWEST or not prompts.any() or not answers.any():
        return None
    terms = np.column_stack([np.ones(len(counted)), prompts, answers, cached, pairs]) / seconds[:, None]
    fixed, prompt_s, answer_s, cached_s, pair_s = nonnegative(terms.T @ terms, terms.sum(axis=0))
    of_prompts = prompt_s * prompts + pair_s * pairs + fixed * prompts / (prompts + answers)
    of_answers = answer_s * answers + cached_s * cached + fixed * answers / (prompts + answers)
    whole = float((of_prompts + of_answers).sum())
    error = float(np.mean(np.abs((of_prompts + of_answers) / seconds - 1)))
    share = float(of_prompts.sum()) / whole
    return Attribution(share, 1 - share, len(counted), error)


def _columns(steps: Sequence[Step]) -> list[list[float]]:
    rows = [(step.prefill_tokens, step.decodes, step.kv_tokens, step.prefill_pairs, step.seconds) for step in steps]
    return [[row[column] for row in rows] for column in range(5)]
