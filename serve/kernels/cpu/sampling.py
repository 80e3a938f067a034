"""The next tokens of all rows of logits at once, on the CPU: src/sampling.h, by the rules of engine/sampler.py."""

from collections.abc import Sequence
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
    options = torch.tensor(draws, dtype=torch.float64)
    ids = torch.empty(len(draws), dtype=torch.int64)
    require().draw(
        logits.data_ptr(), logits.shape[1], logits.dtype is torch.float32,
        options.data_ptr(), len(draws), ids.data_ptr(), torch.get_num_threads(),
    )  # fmt: skip
    return ids.tolist()
