"""The next tokens of all rows of logits at once, and log probabilities, on the CPU: src/sampling.h and scoring.h."""

from array import array
from collections.abc import Sequence
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor

from twofour.serve.kernels.cpu.extension import missing
from twofour.serve.kernels.cpu.weight import require

DTYPES = (torch.bfloat16, torch.float32)


class Draw(NamedTuple):
    """How one token is drawn; the order is that of `Draw` in src/kernels.h."""

    row: int  # of the logits
    temperature: float  # 0: the best, of equals the lowest id
    min_p: float
    top_k: int  # 0: off
    top_p: float
    u: float  # 0 <= u < 1


def takes(logits: Tensor) -> bool:
    """Whether the kernel takes such logits [rows, vocabulary] here."""
    shaped = logits.dim() == 2 and logits.numel() > 0 and logits.is_contiguous()
    return shaped and logits.is_cpu and logits.dtype in DTYPES and not missing()


def draw(logits: Tensor, draws: Sequence[Draw]) -> list[int]:
    """Draw a token for each from its row of `logits`, which `takes`; -1 where the best of the row is not finite."""
    if not draws:
        return []
    options, ids = array("d", chain.from_iterable(draws)), array("q", bytes(8 * len(draws)))
    require().draw(
        logits.data_ptr(), logits.shape[1], logits.dtype is torch.float32,
        options.buffer_info()[0], len(draws), ids.buffer_info()[0], torch.get_num_threads(),
    )  # fmt: skip
    return ids.tolist()


def score(logits: Tensor, tokens: Sequence[int], top: int) -> tuple[list[float], list[list[int]], list[list[float]]]:
    """Log probabilities of a token for each row of `logits`, which `takes`; ids and values of the `top` likeliest.

    All are NaN where the best of a row is not finite.
    """
    rows, vocabulary = logits.shape
    if len(tokens) != rows or not all(0 <= token < vocabulary for token in tokens):
        raise IndexError(f"{len(tokens)} tokens for {rows} rows, each below {vocabulary}, are wanted, got {tokens}")
    top = min(top, vocabulary)
    given, found = torch.tensor(tokens), torch.empty(rows)
    ids, values = torch.empty(rows, top, dtype=torch.int64), torch.empty(rows, top)
    require().score(
        logits.data_ptr(), vocabulary, logits.dtype is torch.float32, given.data_ptr(), rows, top,
        found.data_ptr(), ids.data_ptr(), values.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return found.tolist(), ids.tolist(), values.tolist()
