"""Distances on answers: against a direct computation, weighed by tokens, with the error of a ratio."""

import math

import pytest
import torch
from torch import Tensor

from twofour.prune.errors import TextError
from twofour.prune.label.answers import Answered, judge

ANSWERED = [Answered([1, 2, 3], [4, 5]), Answered([6], [7, 8, 9, 1, 2]), Answered([2, 2], [3])]


def logits_of(seed: int) -> Tensor:
    """Logits of the next token by this one."""
    return torch.randn(10, 10, generator=torch.Generator().manual_seed(seed))


def test_only_the_tokens_of_answers_count_and_each_the_same() -> None:
    ours, dense = logits_of(0), logits_of(1)
    found = judge(lambda ids: ours[ids], lambda ids: dense[ids], ANSWERED)
    kls, agreements, errors = [], [], []
    for each in ANSWERED:
        before = torch.tensor([*each.prompt, *each.answer])[len(each.prompt) - 1 : -1]
        log_p, log_q = dense[before].log_softmax(-1), ours[before].log_softmax(-1)
        kls.append((log_p.exp() * (log_p - log_q)).sum(-1))
        agreements.append(log_p.argmax(-1) == log_q.argmax(-1))
    kl = float(torch.cat(kls).mean())
    assert (found.answers, found.tokens) == (3, 8)
    assert found.kl_nats == pytest.approx(kl, rel=1e-5)
    assert found.agreement == pytest.approx(float(torch.cat(agreements).float().mean()))
    errors = [float((each - kl).sum()) for each in kls]
    assert found.kl_error == pytest.approx(math.sqrt(sum(e**2 for e in errors) * 3 / 2) / 8, rel=1e-4)


def test_a_model_answers_as_itself() -> None:
    found = judge(lambda ids: logits_of(0)[ids], lambda ids: logits_of(0)[ids], ANSWERED[:1])
    assert (found.kl_nats, found.kl_error, found.agreement) == (pytest.approx(0, abs=1e-6), None, 1.0)


def test_no_answer() -> None:
    with pytest.raises(TextError, match="gives no answer with a token in it; ask other questions"):
        judge(lambda ids: logits_of(0)[ids], lambda ids: logits_of(0)[ids], [])
