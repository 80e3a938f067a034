"""Windows of a text: pieces of one length, each begun as the model knows a text to begin.

Many models are trained with a token before every text (BOS) and are lost without it: a Gemma has three times the
perplexity. Their tokenizer shows it: it adds the token by itself. For such a model BOS takes the first place of every
window; for others a window is text alone.
"""

from typing import Any

import torch
from torch import Tensor


def bos(tokenizer: Any) -> int | None:
    """Return the token that a tokenizer begins every text with; None where it adds none."""
    token: int | None = tokenizer.bos_token_id
    return token if tokenizer("x")["input_ids"][:1] == [token] else None


def text_tokens(length: int, bos: int | None) -> int:
    """Return how many tokens of a window are text."""
    return length if bos is None else length - 1


def begun(windows: Tensor, bos: int | None) -> Tensor:  # int64 [windows, text tokens] -> [windows, length]
    """Begin every window with BOS."""
    return windows if bos is None else torch.cat([windows.new_full((len(windows), 1), bos), windows], dim=1)
