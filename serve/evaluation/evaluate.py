"""Quality of exactly what is served: the model is loaded as the server loads it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from twofour.prune.errors import InputError
from twofour.prune.format.checkpoint import MANIFEST
from twofour.prune.format.folder import read_json, resolve
from twofour.prune.label import quality
from twofour.prune.label.answers import AnswerQuality
from twofour.prune.label.quality import Quality, gaps_closed
from twofour.prune.progress import Progress, silent
from twofour.prune.text import corpus
from twofour.prune.text.windows import bos
from twofour.serve.evaluation import WINDOW_TOKENS, harness
from twofour.serve.evaluation.conversation import Questions, judged
from twofour.serve.model.dense_int8 import Int8Linear
from twofour.serve.model.loading import load_model
from twofour.serve.writing.fused_writer import new_writer

SAMPLED_WINDOWS = 16
SEED_STEP = 1_000_003  # added to the seed of calibration: text that calibration never saw


@dataclass(frozen=True)
class Evaluation:
    """The figures, and what they were measured on.

    begins_with: the token before the text in every window, which is not scored; None where it is text alone.
    head: what lm_head in int8 costs by itself; None where it is not int8, or there is no baseline.
    against_perplexity: of another pruned model, to compare with.
    lm_eval: the scores of both models by task and metric, as `harness.both` gives them.
    questions, answers: what a chat model was asked, and how near its answers are; None where it was not.
    """

    quality: Quality
    text: str
    sampled: bool  # by the model, not from a file
    begins_with: str | None
    head: Quality | None = None
    against_perplexity: float | None = None
    lm_eval: dict[str, Any] | None = None
    questions: str | None = None
    answers: AnswerQuality | None = None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        about = {"text": self.text, "sampled": self.sampled, "begins_with": self.begins_with}
        head = {
            "head_kl_nats": self.head.kl_nats if self.head else None,
            "head_kl_error": self.head.kl_error if self.head else None,
        }
        against = {"against_perplexity": self.against_perplexity, **self._gaps()}
        return {**self.quality.as_dict(), **about, **head, **against}

    def answers_as_dict(self) -> dict[str, Any] | None:
        """Plain data for JSON, and for the label under what was asked."""
        return None if self.answers is None else {"questions": self.questions, **self.answers.as_dict()}

    def _gaps(self) -> dict[str, float | None]:
        """How much of the gap between the other pruned model and the dense one is closed."""
        dense, other = self.quality.baseline_perplexity, self.against_perplexity
        if dense is None or other is None:
            return {"gap_closed": None, "nll_gap_closed": None}
        gap, log_gap = gaps_closed(self.quality.perplexity, dense, other)
        return {"gap_closed": gap, "nll_gap_closed": log_gap}


def evaluate(path: str, baseline: str | None = None, text: str | Path | None = None) -> Quality:
    """Measure a folder or hub id on a text file; without one, on text sampled from the baseline (or itself)."""
    return measure(path, baseline, None if text is None else Path(text)).quality


def measure(
    path: str,
    baseline: str | None = None,
    file: Path | None = None,
    window: int = WINDOW_TOKENS,
    limit: int | None = None,
    kernels: str = "auto",
    progress: Progress = silent,
    against: str | None = None,
    tasks: harness.Tasks | None = None,
    lm_head: str | None = None,
    dense_values: str | None = None,
    questions: Questions | None = None,
) -> Evaluation:
    """Measure, and say on what text. `limit`: the most windows that are scored.

    `against`: another pruned model, usually by SparseGPT, to tell how much of its gap to the baseline is closed.
    `lm_head`, `dense_values`: what of the model is rounded when it is loaded, as in `load_model`.
    `questions`: that chat models are asked, if there is a baseline.
    """
    if against is not None and baseline is None:
        raise InputError("without a baseline there is no gap to close; give --baseline with --against")
    if tasks:
        harness.require(tasks)
    model = load_model(path, kernels=kernels, lm_head=lm_head, dense_values=dense_values)
    dense = None if baseline is None else load_model(baseline)
    tokenizer = corpus.load_tokenizer(resolve(baseline or path))
    windows, source, start = _text(path, model, dense, tokenizer, file, window, limit, progress)
    figures = quality.evaluate(_logits(model), windows, None if dense is None else _logits(dense), progress)
    head = None if dense is None else head_alone(model, dense, windows, progress)
    answers = None
    if questions and dense is not None:
        answers = judged(questions, dense, _logits(model), _logits(dense), tokenizer, progress)
    scores = harness.both(model, dense, tokenizer, tasks) if tasks else None
    del model, dense  # the third model may have their memory
    other = None if against is None else quality.evaluate(_logits(load_model(against)), windows, progress=progress)
    return Evaluation(
        quality=figures,
        text=source,
        sampled=file is None,
        begins_with=None if start is None else tokenizer.convert_ids_to_tokens(start),
        head=head,
        against_perplexity=other.perplexity if other else None,
        lm_eval=scores,
        questions=questions.name if questions and answers else None,
        answers=answers,
    )


def _text(
    path: str,
    model: Any,
    dense: Any,
    tokenizer: Any,
    file: Path | None,
    window: int,
    limit: int | None,
    progress: Progress,
) -> tuple[Tensor, str, int | None]:
    """The windows to measure on, what they are called, and the token before their text."""
    if file is not None:
        start = bos(tokenizer)
        return quality.windows(corpus.tokens(tokenizer, file), window, limit, start), file.name, start
    seed, count = _fresh_seed(path), min(limit or SAMPLED_WINDOWS, SAMPLED_WINDOWS)
    windows = corpus.self_sampled(new_writer(dense or model), tokenizer, count, window, seed, progress)
    who = "the baseline" if dense else "the model"
    return windows, f"{count} windows sampled from {who}, seed {seed}", corpus.start_token(tokenizer)


def head_alone(model: Any, dense: Any, windows: Tensor, progress: Progress = silent) -> Quality | None:
    """Measure what lm_head in int8 costs by itself: the baseline is the same model with the dense model's lm_head.

    None where lm_head is not int8, or the dense model's does not fit in its place.
    """
    rounded, exact = model.get_output_embeddings(), dense.get_output_embeddings()
    if not isinstance(rounded, Int8Linear) or model.dtype != dense.dtype:
        return None
    if (rounded.out_features, rounded.in_features) != (exact.out_features, exact.in_features):
        return None

    def unrounded(ids: Tensor) -> Tensor:
        model.set_output_embeddings(exact)
        try:
            return logits(ids)
        finally:
            model.set_output_embeddings(rounded)

    logits = _logits(model)
    return quality.evaluate(logits, windows, unrounded, progress)


def _fresh_seed(path: str) -> int:
    """A seed that calibration never used."""
    manifest = resolve(path) / MANIFEST
    calibration = read_json(manifest).get("calibration") if manifest.exists() else None
    return SEED_STEP + int((calibration or {}).get("seed", 0))


def _logits(model: nn.Module) -> quality.Logits:
    def logits(ids: Tensor) -> Tensor:
        with torch.inference_mode():
            result: Tensor = model(ids.to(next(model.parameters()).device), use_cache=False).logits
        return result.cpu()

    return logits
