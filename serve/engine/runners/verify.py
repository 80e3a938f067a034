"""How far a runner is from the model that it runs."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from twofour.serve.engine.runners import Chunk

TRIAL_TOKENS = 24


def trial_tokens(vocabulary: int, count: int = TRIAL_TOKENS) -> list[int]:
    return [(7 * i + 1) % vocabulary for i in range(count)]


def tolerance(dtype: torch.dtype) -> float:
    """How much of a deviation is rounding."""
    return 1e-3 if dtype == torch.float32 else 0.1


def deviation(
    forward: Callable[[Sequence[Chunk]], Tensor], own: Callable[[list[int]], Tensor], tokens: list[int], block_size: int
) -> float:
    """How far a decode step after chunked prefill is from the model's own logits, relative to their norm."""
    count = len(tokens)
    blocks = range(-(-count // block_size))
    for start, stop in pairwise(sorted({0, count // 2, count - 1, count})):
        prompt = stop - start if stop < count else 0
        wanted = range(stop - start - 1, stop - start)
        found = forward([Chunk(tokens[start:stop], start, blocks, wanted, prompt)])
    expected = own(tokens)
    return float((found - expected).float().norm() / expected.float().norm())
