"""Scores against sums written out in float64, and the windowing."""

import itertools
import math

import pytest
import torch
from torch import Tensor

from twofour.prune.errors import InputError, NonFiniteError, TextError
from twofour.prune.label import quality
from twofour.prune.progress import Step

VOCABULARY = 11


def table(seed: int) -> Tensor:
    return 3 * torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed))


def bigram(logits: Tensor) -> quality.Logits:
    """A model that knows the last token only."""
    return lambda ids: logits[ids]


def text(seed: int, windows: int, tokens: int) -> Tensor:
    return torch.randint(VOCABULARY, (windows, tokens), generator=torch.Generator().manual_seed(seed))


def by_hand(model: Tensor, dense: Tensor, ids: Tensor) -> dict[str, list[float]]:
    """Per window: mean nll, the baseline's nll, KL and agreement, a prediction at a time."""
    rows: dict[str, list[float]] = {"nll": [], "dense": [], "kl": [], "agreement": []}
    q, p = model.double().softmax(-1), dense.double().softmax(-1)
    for window in ids.tolist():
        pairs = list(itertools.pairwise(window))
        rows["nll"].append(-sum(math.log(q[a, b]) for a, b in pairs) / len(pairs))
        rows["dense"].append(-sum(math.log(p[a, b]) for a, b in pairs) / len(pairs))
        divergence = [sum(float(p[a, v] * torch.log(p[a, v] / q[a, v])) for v in range(VOCABULARY)) for a, _ in pairs]
        rows["kl"].append(sum(divergence) / len(pairs))
        rows["agreement"].append(sum(int(p[a].argmax()) == int(q[a].argmax()) for a, _ in pairs) / len(pairs))
    return rows


def standard_error(values: list[float]) -> float:
    mean = sum(values) / len(values)
    variance = sum((value - mean) ** 2 for value in values) / (len(values) - 1)
    return math.sqrt(variance / len(values))


def test_all_figures_by_hand() -> None:
    model, dense, ids = table(0), table(0) + 0.5 * table(1), text(2, 5, 7)
    result = quality.evaluate(bigram(model), ids, bigram(dense))
    rows = by_hand(model, dense, ids)
    mean = {name: sum(values) / len(values) for name, values in rows.items()}
    assert (result.window_tokens, result.windows, result.predictions) == (7, 5, 30)
    assert result.perplexity == pytest.approx(math.exp(mean["nll"]), rel=1e-5)
    assert result.perplexity_error == pytest.approx(result.perplexity * standard_error(rows["nll"]), rel=1e-4)
    assert result.baseline_perplexity == pytest.approx(math.exp(mean["dense"]), rel=1e-5)
    assert result.kl_nats == pytest.approx(mean["kl"], rel=1e-4)
    assert result.kl_error == pytest.approx(standard_error(rows["kl"]), rel=1e-3)
    assert result.agreement == pytest.approx(mean["agreement"])
    assert 0 < mean["agreement"] < 1


def test_a_model_agrees_with_itself() -> None:
    result = quality.evaluate(bigram(table(0)), text(1, 3, 9), bigram(table(0)))
    assert result.kl_nats == 0.0 and result.agreement == 1.0
    assert result.baseline_perplexity == result.perplexity


def test_a_model_that_knows_nothing_is_as_perplexed_as_its_vocabulary() -> None:
    flat = torch.zeros(VOCABULARY, VOCABULARY)
    assert quality.evaluate(bigram(flat), text(1, 3, 9)).perplexity == pytest.approx(VOCABULARY)


def test_without_a_baseline_the_rest_is_unknown() -> None:
    result = quality.evaluate(bigram(table(0)), text(1, 1, 9)).as_dict()
    unknown = {name for name, value in result.items() if value is None}
    assert unknown == {"perplexity_error", "baseline_perplexity", "kl_nats", "kl_error", "agreement"}


@pytest.mark.parametrize("rows", [1, 2, 5, 100])
def test_chunks_change_nothing(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = text(3, 2, 12)
    whole = quality.evaluate(bigram(table(0)), ids, bigram(table(1)))
    monkeypatch.setattr(quality, "CHUNK_BYTES", rows * 4 * VOCABULARY)
    chunked = quality.evaluate(bigram(table(0)), ids, bigram(table(1)))
    for name, value in whole.as_dict().items():
        assert chunked.as_dict()[name] == pytest.approx(value, rel=1e-6), name


def test_the_first_token_of_a_window_is_not_scored() -> None:
    ids = text(4, 1, 6)
    changed = ids.clone()
    changed[0, 0] = (ids[0, 0] + 1) % VOCABULARY
    flat = table(0)
    flat[changed[0, 0]] = flat[ids[0, 0]]  # the two first tokens predict alike
    assert quality.evaluate(bigram(flat), ids).perplexity == quality.evaluate(bigram(flat), changed).perplexity


def test_a_token_of_probability_zero_in_both_adds_nothing() -> None:
    logits, other = table(0), table(1)
    logits[:, 4] = other[:, 4] = -float("inf")
    ids = text(5, 2, 8)
    ids[ids == 4] = 3
    result = quality.evaluate(bigram(logits), ids, bigram(other))
    assert result.kl_nats is not None and math.isfinite(result.kl_nats) and result.kl_nats > 0


def test_nan_logits_are_refused() -> None:
    broken = table(0)
    broken[3, 3] = float("nan")
    ids = torch.full((1, 5), 3)
    with pytest.raises(NonFiniteError, match="the model's logits"):
        quality.evaluate(bigram(broken), ids)
    with pytest.raises(NonFiniteError, match="the baseline's logits"):
        quality.evaluate(bigram(table(0)), ids, bigram(broken))


def test_two_vocabularies_cannot_be_compared() -> None:
    with pytest.raises(InputError, match=r"\[5, 12\], the model's \[5, 11\]"):
        quality.evaluate(bigram(table(0)), torch.ones(1, 5, dtype=torch.int64), lambda ids: torch.zeros(*ids.shape, 12))


def test_windows_do_not_overlap_and_the_tail_is_dropped() -> None:
    assert quality.windows(torch.arange(11), 4).tolist() == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert quality.windows(torch.arange(11), 4, limit=1).tolist() == [[0, 1, 2, 3]]
    assert quality.windows(torch.arange(4), 4).tolist() == [[0, 1, 2, 3]]


@pytest.mark.parametrize(("count", "tokens"), [(3, 4), (0, 2)])
def test_a_text_that_fills_no_window_is_refused(count: int, tokens: int) -> None:
    with pytest.raises(TextError, match=f"the text holds {count} tokens"):
        quality.windows(torch.arange(count), tokens)


@pytest.mark.parametrize(("tokens", "limit"), [(1, None), (2, 0), (2, -1)])
def test_no_window_and_none_of_one_token(tokens: int, limit: int | None) -> None:
    with pytest.raises(InputError, match="give at least one, of at least 2"):
        quality.windows(torch.arange(9), tokens, limit)


def test_progress_counts_windows() -> None:
    steps: list[Step] = []
    quality.evaluate(bigram(table(0)), text(1, 3, 4), progress=steps.append)
    assert [(step.done, step.total) for step in steps] == [(1, 3), (2, 3), (3, 3)]


def test_the_gap_closed() -> None:
    assert quality.gap_closed(found=40.0, dense=20.0, reference=100.0) == 0.75
    assert quality.gap_closed(found=120.0, dense=20.0, reference=100.0) == -0.25
    assert quality.gap_closed(found=20.0, dense=20.0, reference=20.0) is None
