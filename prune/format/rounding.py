"""Kept values rounded to int8: symmetric, with a float32 scale for each row, or for each run of columns of a row.

    scale = max |w| / 127        of the row, or of the run
    value = round(w / scale)     to the nearest integer, ties to even, so within -127 and 127
    w is read back as value * scale

A row or run of zeros has the scale 0 and the values 0; nothing divides by it. A value that rounds to 0 is an empty slot
like any other, so its group is packed anew: packing stays a function of the weight. The error of a weight is at most
half a scale (and the rounding of float32). One scale for each row is the default: on the demo model, pruned by
SparseGPT, neither changes the perplexity of WikiText-2 by more than its error; the KL to the bfloat16 values is 0.005
nats per token with a scale for each row, 0.003 with one for each 64 columns, which takes a tenth more bytes. (Both
without `solving.gptq`, which makes up for most of it.)
"""

import torch
from torch import Tensor

from twofour.prune.errors import InputError
from twofour.prune.format.packed import Packed, pack
from twofour.prune.format.pattern import GROUP, KEEP

LARGEST = 127


def to_int8(packed: Packed, scale_columns: int = 0) -> Packed:
    """Round float values to int8, with a scale for each `scale_columns` columns, or for each row (0)."""
    if scale_columns < 0 or scale_columns % GROUP:
        raise InputError(f"scale_columns is {scale_columns}; give 0 or a multiple of {GROUP}")
    if packed.scales is not None:
        raise InputError("the values are int8 already; round the values that they were made from")
    runs = [run.abs().amax(1) for run in _runs(packed.values.float(), scale_columns)]
    scales = torch.stack(runs, dim=1) / LARGEST  # [out, runs]
    rounded = [
        _divide(run, scale) for run, scale in zip(_runs(packed.values.float(), scale_columns), scales.T, strict=True)
    ]
    again = pack(Packed(torch.cat(rounded, dim=1), packed.positions).unpack())
    return Packed(again.values.to(torch.int8), again.positions, scales, scale_columns)


def as_int8(weight: Tensor) -> Tensor:  # 2:4 [out, in] -> the same
    """Round a weight as it is read back from int8 with a scale for each row, without packing it: to train through."""
    scales = weight.float().abs().amax(1) / LARGEST
    return (_divide(weight.float(), scales) * scales[:, None]).to(weight.dtype)


def _runs(values: Tensor, scale_columns: int) -> tuple[Tensor, ...]:  # [out, in / 2] -> [out, columns / 2] each
    return values.split((scale_columns * KEEP // GROUP) or values.shape[1], dim=1)


def _divide(run: Tensor, scale: Tensor) -> Tensor:  # [out, columns / 2], [out] -> whole numbers
    quotient = torch.where(scale[:, None] > 0, run / scale[:, None], 0)
    return quotient.round().clamp(-LARGEST, LARGEST)
