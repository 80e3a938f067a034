"""How well a chat model answers: its distance to the dense model on the answers that the dense model gives greedily.

Only the tokens of answers are scored, their end included; each counts the same, whichever answer it is of. The
standard error comes from the spread between answers, as of a ratio of two sums.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from twofour.prune.errors import TextError
from twofour.prune.label.quality import Logits, Scores, score_window, with_error
from twofour.prune.progress import Progress, silent, track

HEAD = ("questions", "answers", "KL, nats", "top-1 agreement")
NOTE = "On the tokens of the answers that the dense model gives greedily, through its chat template."


@dataclass(frozen=True)
class Answered:
    """A question as the model is asked it, and the dense model's answer to it, as token ids; neither is empty."""

    prompt: Sequence[int]
    answer: Sequence[int]


@dataclass(frozen=True)
class AnswerQuality:
    """What answers say about a model. kl_error: one standard error, None with a single answer."""

    answers: int
    tokens: int
    kl_nats: float
    kl_error: float | None
    agreement: float

    def as_dict(self) -> dict[str, float | None]:
        """Return the fields, for JSON."""
        return asdict(self)


@torch.no_grad()
def judge(model: Logits, dense: Logits, answered: Sequence[Answered], progress: Progress = silent) -> AnswerQuality:
    """Score a model on answers of the dense one. Raises TextError where there are none."""
    if not answered:
        raise TextError("the dense model gives no answer with a token in it; ask other questions")
    scores = [_score(model, dense, each) for each in track(answered, "judging answers", progress)]
    counts = [len(each.answer) for each in answered]
    kl = _mean([score.kl for score in scores], counts)
    errors = [count * (score.kl - kl) for score, count in zip(scores, counts, strict=True)]
    return AnswerQuality(
        answers=len(answered),
        tokens=sum(counts),
        kl_nats=kl,
        kl_error=_error(errors, sum(counts)),
        agreement=_mean([score.agreement for score in scores], counts),
    )


def _score(model: Logits, dense: Logits, answered: Answered) -> Scores:
    """Means over the tokens of one answer."""
    ids = torch.tensor([*answered.prompt, *answered.answer])
    before = len(answered.prompt) - 1  # the last token of the prompt predicts the first of the answer

    def logits(which: Logits) -> Tensor:
        return which(ids[None])[0, before:]

    return score_window(logits(model), logits(dense), ids[before:])


def _mean(values: Sequence[float], counts: Sequence[int]) -> float:
    return sum(value * count for value, count in zip(values, counts, strict=True)) / sum(counts)


def _error(errors: Sequence[float], total: int) -> float | None:
    number = len(errors)
    if number < 2:
        return None
    return math.sqrt(sum(error**2 for error in errors) * number / (number - 1)) / total


def rows(manifest: Mapping[str, Any]) -> list[list[str]]:
    """What was measured on answers, a row for all questions of one kind, under HEAD."""
    return [
        [
            questions,
            f"{figures['answers']}, {figures['tokens']} tokens",
            with_error(figures["kl_nats"], figures["kl_error"], ".4f"),
            f"{figures['agreement']:.1%}",
        ]
        for questions, figures in (manifest.get("answers") or {}).items()
    ]
