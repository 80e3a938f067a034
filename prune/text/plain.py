"""The writer without a server: transformers' own forward, on any device, for any model.

Texts of one batch stand side by side from their first token on. All read one token a step; what is drawn for a text
that still reads its prompt, or has ended, is dropped. A batch ends with its last text.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from twofour.prune.errors import InputError
from twofour.prune.model.anatomy import cached_numbers
from twofour.prune.model.attention import quick_attention
from twofour.prune.model.decoding import draw, roomy_cache, with_cache
from twofour.prune.progress import Progress, silent
from twofour.prune.text.writer import Passage, meter, not_finite

BATCH_TOKENS = 1 << 15  # that are written at a time
CACHE_BYTES = 1 << 30  # of keys and values at a time


class PlainWriter:
    """Writes with a model where it is."""

    name = "transformers"

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    @torch.no_grad()
    def write(self, passages: Sequence[Passage], progress: Progress = silent) -> list[list[int]]:
        """See `Writer`."""
        longest = max((_length(passage) for passage in passages), default=0)
        refuse_length(self._model, longest)
        report, written = meter(passages, progress), list[list[int]]()
        size = batch_samples(self._model, max(1, longest))
        with quick_attention(self._model):
            for start in range(0, len(passages), size):
                written += self._together(passages[start : start + size], report)
        return written

    def _together(self, passages: Sequence[Passage], report: Callable[[int], None]) -> list[list[int]]:
        device, length = next(self._model.parameters()).device, max(map(_length, passages))
        texts = [Growing(passage) for passage in passages]
        temperatures = torch.tensor([[passage.temperature] for passage in passages], device=device)
        cache = roomy_cache(self._model, length)
        while not all(text.is_done for text in texts):
            last = torch.tensor([[text.last] for text in texts], device=device)
            logits = self._logits(last, cache)
            uniform = torch.tensor([[text.uniform] for text in texts])
            drawn = draw(logits, uniform, temperatures)[:, 0].tolist()
            report(sum(text.take(token) for text, token in zip(texts, drawn, strict=True)))
        return [text.written for text in texts]

    def _logits(self, last: Tensor, cache: Any) -> Tensor:  # int64 [batch, 1] -> [batch, vocabulary]
        logits: Tensor = self._model(last, **with_cache(self._model, cache), use_cache=True).logits[:, -1]
        if not bool(torch.isfinite(logits.amax(-1)).all()):  # single tokens may be impossible
            raise not_finite(cache.get_seq_length() - 1)
        return logits


class Growing:
    """One text of a batch: which token it reads next, and what has been written."""

    def __init__(self, passage: Passage) -> None:
        self._passage, self._tokens, self._read = passage, list(passage.prompt), 0
        generator = torch.Generator().manual_seed(passage.seed)
        self._uniform = torch.rand(max(0, passage.tokens), generator=generator).tolist()
        self.is_done = passage.tokens < 1

    @property
    def written(self) -> list[int]:
        """The tokens after the prompt."""
        return self._tokens[len(self._passage.prompt) :]

    @property
    def last(self) -> int:
        """The token that is read in the next step."""
        return self._tokens[self._read]

    @property
    def uniform(self) -> float:
        """The number in [0, 1) that the next token is drawn by."""
        return 0.0 if self.is_done else float(self._uniform[len(self._tokens) - len(self._passage.prompt)])

    def take(self, drawn: int) -> int:
        """Note that the last token was read, and what was drawn after it; return how many more tokens are done."""
        is_behind = self._read + 1 < len(self._tokens)
        self._read += is_behind or not self.is_done
        if is_behind or self.is_done:
            return 0
        self._tokens.append(drawn)
        left = self._passage.tokens - len(self.written)
        self.is_done = not left or drawn in self._passage.ends
        return 1 + left if self.is_done else 1


def _length(passage: Passage) -> int:
    return len(passage.prompt) + passage.tokens


def batch_samples(model: nn.Module, length: int) -> int:
    """Return how many texts are written at a time: fewer where their keys and values would take much memory."""
    return max(1, min(BATCH_TOKENS // length, CACHE_BYTES // cache_bytes(model, length)))


def cache_bytes(model: nn.Module, length: int) -> int:
    """Return the size of the keys and values of one text."""
    return cached_numbers(model.config) * length * next(model.parameters()).element_size()


def refuse_length(model: nn.Module, length: int) -> None:
    """Raise InputError if a window is longer than the model's context."""
    context = getattr(model.config, "max_position_embeddings", None)
    if context is not None and length > context:
        raise InputError(f"length {length} exceeds the model's context of {context}; give a smaller length")
