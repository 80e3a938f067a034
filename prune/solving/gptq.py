"""Int8 rounding of a 2:4 weight that the columns to the right make up for (GPTQ, arXiv 2210.17323), masks fixed.

The walk of `sparsegpt`, with two differences: what is kept becomes a whole number of scales, and masks are given. The
scale of a row is that of `format.rounding`, max |w| / 127. The largest value of a row takes no part in making up for
others: the scale of what comes out is the same, and rounding that again changes nothing.
"""

import torch
from torch import Tensor

from twofour.prune.format.rounding import LARGEST
from twofour.prune.solving.sparsegpt import inverse_factor


def gptq(weight: Tensor, hessian: Tensor, damping: float = 0.01, block_columns: int = 128) -> Tensor:
    """Return a 2:4 weight [out, in] as int8 has it, each rounding made up for under the Hessian [in, in].

    Raises FactorError where the damped Hessian cannot be factored.
    """
    factor = inverse_factor(hessian, damping)
    left = weight.T.contiguous()  # [in, out]: a column of W is one run of memory
    kept, peaks = left != 0, torch.where(left.abs() == left.abs().amax(0), left, 0)
    scales = left.abs().amax(0) / LARGEST
    for start in range(0, len(left), block_columns):
        block = slice(start, min(start + block_columns, len(left)))
        errors = _round_block(left[block], kept[block], peaks[block], scales, factor[block, block])
        left[block.stop :].addmm_(factor[block, block.stop :].T, errors, alpha=-1)
    return left.T.contiguous()


def _round_block(left: Tensor, kept: Tensor, peaks: Tensor, scales: Tensor, factor: Tensor) -> Tensor:
    """Round a block [columns, out] in place; return its errors, each over U_jj."""
    errors = torch.zeros_like(left)
    for j in range(len(left)):
        wanted = torch.where(peaks[j] != 0, peaks[j], left[j])
        whole = torch.where(scales > 0, wanted / scales, 0).round().clamp(-LARGEST, LARGEST)
        left[j] = whole * scales * kept[j]
        errors[j] = (wanted - left[j]) / factor[j, j]
        left[j + 1 :].addr_(factor[j, j + 1 :], errors[j], alpha=-1)
    return errors
