"""Adam's moments in 8 bits: a code for each number, and a float32 scale for each block of a row.

    scale = max |x|                        of the block
    code  = round(L * sqrt(|x| / scale))   with the sign of x; L is 127 for int8, 255 for uint8
    x is read back as scale * (code / L)^2

Moments of one row differ by orders of magnitude, so codes that are dense near 0 serve them better than a straight line,
and blocks keep a few huge ones from drowning the others (Dettmers et al., arXiv 2110.02861). Of the second moment the
root is held: it is what a step divides by. Its codes are never 0, so no step divides by nothing where there was a
gradient.
"""

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 128  # numbers that share a scale, at most
LARGEST = {torch.int8: 127, torch.uint8: 255}


class Codes(NamedTuple):
    """Numbers in 8 bits. codes: int8, or uint8 where none is negative, [rows, columns]; scales: [rows, blocks]."""

    codes: Tensor
    scales: Tensor

    def rows(self, rows: slice) -> "Codes":
        """A view of some rows."""
        return Codes(self.codes[rows], self.scales[rows])


def block_columns(columns: int) -> int:
    """The length of a block: the largest up to BLOCK that divides a row."""
    return next(size for size in range(min(BLOCK, columns), 0, -1) if columns % size == 0)


def zeros(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Codes:
    """Return zeros, as moments begin."""
    blocks = columns // block_columns(columns)
    return Codes(
        torch.zeros(rows, columns, dtype=dtype, device=device),
        torch.zeros(rows, blocks, dtype=torch.float32, device=device),
    )


def read(numbers: Codes) -> Tensor:  # float32 [rows, columns]
    """Read the numbers back."""
    shares = numbers.codes.float().div_(LARGEST[numbers.codes.dtype])
    shares = shares.mul_(shares.abs()).unflatten(1, (numbers.scales.shape[1], -1))
    return shares.mul_(numbers.scales[:, :, None]).flatten(1)


def write(numbers: Codes, values: Tensor) -> None:  # float32 [rows, columns]
    """Round values to the nearest codes, in place; of uint8 the least code is 1."""
    largest = LARGEST[numbers.codes.dtype]
    blocks = values.unflatten(1, (numbers.scales.shape[1], -1))
    numbers.scales.copy_(blocks.abs().amax(-1))
    shares = blocks / numbers.scales.clamp_min(torch.finfo(torch.float32).tiny)[:, :, None]
    codes = shares.abs().sqrt_().mul_(largest).round_()
    codes = codes.copysign_(shares) if numbers.codes.dtype == torch.int8 else codes.clamp_min_(1)
    numbers.codes.copy_(codes.flatten(1))
