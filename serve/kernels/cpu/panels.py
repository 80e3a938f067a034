"""Many tokens: expand a panel of rows into scratch that stays in the L2 cache, multiply by torch's dense kernel.

Expanding the whole matrix first would write it to memory and read it back; a panel never leaves the cache.
"""

import torch
from torch import Tensor
from torch.nn import functional

from twofour.serve.kernels.cpu.weight import CpuWeight, require

PANEL_BYTES = 1 << 21  # of scratch; a multiple of 8 rows is taken, at least 8
BLOCK_ROWS = 8


def linear(x: Tensor, weight: CpuWeight, bias: Tensor | None) -> Tensor:  # [tokens, columns] -> [tokens, rows]
    """Multiply panel by panel, in the dtype of x."""
    panel_rows = min(_panel_rows(weight, x.dtype), weight.rows)
    scratch = x.new_empty(panel_rows, weight.columns)
    if panel_rows == weight.rows:  # nothing to put together
        expand(weight, 0, weight.rows, scratch)
        return functional.linear(x, scratch, bias)
    y = x.new_empty(x.shape[0], weight.rows)
    for first in range(0, weight.rows, panel_rows):
        end = min(first + panel_rows, weight.rows)
        panel = scratch[: end - first]
        expand(weight, first, end, panel)
        y[:, first:end] = functional.linear(x, panel, None if bias is None else bias[first:end])
    return y


def expand(weight: CpuWeight, first: int, end: int, to: Tensor) -> None:  # to: [end - first, columns]
    """Write rows `first` to `end` as dense bfloat16 or float32; `first` is a multiple of 8."""
    require().expand(
        weight.kind, weight.data.data_ptr(), to.data_ptr(), weight.rows, weight.columns,
        first, end, int(to.dtype == torch.float32), torch.get_num_threads(),
    )  # fmt: skip


def _panel_rows(weight: CpuWeight, dtype: torch.dtype) -> int:
    fitting = PANEL_BYTES // (weight.columns * dtype.itemsize) // BLOCK_ROWS * BLOCK_ROWS
    return max(fitting, BLOCK_ROWS)
