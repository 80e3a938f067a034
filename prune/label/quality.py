"""How well a model predicts text, and how far it is from a baseline.

The text is cut into windows that do not overlap; a rest that fills none is dropped. A window has N tokens, the first of
which is BOS where the model expects it (`text.windows`); the first is not scored: a window gives N - 1 predictions.
Perplexity is exp of the mean negative log likelihood over all predictions; its standard error comes from the spread
between windows. KL(baseline || model) is the mean over predictions in nats, agreement the share of predictions where
both rank the same token first. Log probabilities are float32, sums float64.
"""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import Tensor

from twofour.prune.errors import InputError, NonFiniteError, TextError
from twofour.prune.progress import Progress, silent, track
from twofour.prune.text.windows import begun, text_tokens

CHUNK_BYTES = 64 << 20  # float32 [tokens, vocabulary] at a time; the models see one window at a time

Logits = Callable[[Tensor], Tensor]  # int64 [batch, tokens] -> [batch, tokens, vocabulary]


@dataclass(frozen=True)
class Quality:
    """What a text says about a model; the last four are None without a baseline."""

    window_tokens: int
    windows: int
    predictions: int
    perplexity: float
    perplexity_error: float | None  # one standard error; None with a single window
    baseline_perplexity: float | None = None
    kl_nats: float | None = None
    kl_error: float | None = None
    agreement: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """Return the fields, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class Scores:
    """Means over the predictions of one window; all but `nll` are 0 without a baseline."""

    nll: float
    baseline_nll: float = 0.0
    kl: float = 0.0
    agreement: float = 0.0


def windows(
    ids: Tensor, tokens: int, limit: int | None = None, bos: int | None = None
) -> Tensor:  # int64 [n] -> [windows, tokens]
    """Cut a text into windows, each begun with BOS if there is one. Raises TextError if it does not fill one."""
    own = text_tokens(tokens, bos)
    if tokens < 2 or (limit is not None and limit < 1):
        raise InputError(f"{limit or 'all'} windows of {tokens} tokens; give at least one, of at least 2")
    if len(ids) < own:
        raise TextError(f"the text holds {len(ids)} tokens, a window of {tokens} needs {own}; give more text")
    cut = ids[: len(ids) // own * own].view(-1, own)
    return begun(cut if limit is None else cut[:limit], bos)


@torch.no_grad()
def evaluate(model: Logits, text: Tensor, baseline: Logits | None = None, progress: Progress = silent) -> Quality:
    """Score a model, and its distance to a baseline, on windows of text, int64 [windows, tokens]."""
    parts = [
        score_window(model(window[None])[0], None if baseline is None else baseline(window[None])[0], window)
        for window in track(text, "evaluating", progress)
    ]
    return summarise(parts, text.shape[1], compared=baseline is not None)


def score_window(logits: Tensor, baseline: Tensor | None, ids: Tensor) -> Scores:
    """Score the predictions of one window from its logits, [tokens, vocabulary], and its ids, [tokens]."""
    if baseline is not None and baseline.shape != logits.shape:
        raise InputError(
            f"the baseline's logits are {list(baseline.shape)}, the model's {list(logits.shape)}; "
            "compare models of one vocabulary"
        )
    size = max(1, CHUNK_BYTES // (4 * logits.shape[1]))
    sums = torch.zeros(4, dtype=torch.float64)
    for start in range(0, len(ids) - 1, size):
        stop = min(start + size, len(ids) - 1)
        dense = None if baseline is None else baseline[start:stop]
        sums += _sums(logits[start:stop], dense, ids[start + 1 : stop + 1])
    nll, baseline_nll, kl, agreement = (sums / (len(ids) - 1)).tolist()
    return Scores(nll) if baseline is None else Scores(nll, baseline_nll, kl, agreement)


def summarise(scores: Sequence[Scores], window_tokens: int, compared: bool) -> Quality:
    """Turn scores per window into figures for the text."""
    nll, nll_error = _mean([score.nll for score in scores])
    quality = Quality(
        window_tokens=window_tokens,
        windows=len(scores),
        predictions=len(scores) * (window_tokens - 1),
        perplexity=math.exp(nll),
        perplexity_error=None if nll_error is None else math.exp(nll) * nll_error,  # delta method
    )
    if not compared:
        return quality
    kl, kl_error = _mean([score.kl for score in scores])
    return replace(
        quality,
        baseline_perplexity=math.exp(_mean([score.baseline_nll for score in scores])[0]),
        kl_nats=kl,
        kl_error=kl_error,
        agreement=_mean([score.agreement for score in scores])[0],
    )


def with_error(value: float, error: float | None, form: str) -> str:
    """Write a figure with its standard error; None: unknown, as of a single window."""
    return f"{value:{form}}" if error is None else f"{value:{form}} ± {error:{form}}"


def gap_closed(found: float, dense: float, reference: float) -> float | None:
    """Return how much of the way from a reference's loss to the dense one is made; None where there is no way.

    Of perplexities, or of their logarithms, which do not flatter where the way is long.
    """
    return (reference - found) / (reference - dense) if reference > dense else None


def gaps_closed(found: float, dense: float, reference: float) -> tuple[float | None, float | None]:
    """Return the gap closed of three perplexities, and of their logarithms."""
    three = (found, dense, reference)
    return gap_closed(*three), gap_closed(*map(math.log, three))


def _mean(values: list[float]) -> tuple[float, float | None]:
    """The mean and its standard error, None for a single value."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
    return statistics.fmean(values), error


def _sums(logits: Tensor, baseline: Tensor | None, targets: Tensor) -> Tensor:  # -> float64 [4]
    """Sum nll, the baseline's nll, KL and agreement over some predictions."""
    log_q = _log_probabilities(logits, "model")
    nll = -_of_targets(log_q, targets)
    if baseline is None:
        return torch.tensor([float(nll), 0.0, 0.0, 0.0], dtype=torch.float64)
    log_p = _log_probabilities(baseline, "baseline")
    p = log_p.exp()
    kl = torch.where(p > 0, p * (log_p - log_q), 0.0).sum(dtype=torch.float64)  # 0 log 0 is 0
    agreement = (log_p.argmax(-1) == log_q.argmax(-1)).sum()
    sums = (nll, -_of_targets(log_p, targets), kl, agreement)
    return torch.tensor([float(value) for value in sums], dtype=torch.float64)


def _of_targets(log_probabilities: Tensor, targets: Tensor) -> Tensor:
    return log_probabilities.gather(-1, targets[:, None]).sum(dtype=torch.float64)


def _log_probabilities(logits: Tensor, whose: str) -> Tensor:
    result = logits.float().log_softmax(-1)
    if bool(torch.isnan(result).any()):
        raise NonFiniteError(f"the {whose}'s logits hold NaN or infinity; check its weights and dtype")
    return result
