"""The schemes in which a linear of the decoder blocks can be stored, and the bytes that each takes.

    2:4         values of the model's own dtype, and a nibble for each four weights: 1.125 bytes a weight in 16 bits
    2:4-int8    int8 values with a scale for each row: 0.625, and the scales
    dense       as in the dense model: 2 bytes a weight in 16 bits
    dense-int8  int8 with a scale for each 64 columns: 1.0625

What a weight is stored as shows in its type: `Packed` is 2:4, `DenseInt8` is dense-int8, and a tensor is dense.
"""

from typing import Literal

import torch
from torch import Tensor

from twofour.prune.format.dense_int8 import DenseInt8, int8_bytes, to_dense_int8
from twofour.prune.format.packed import Packed, pack, scale_count
from twofour.prune.format.pattern import GROUP, KEEP
from twofour.prune.format.rounding import to_int8

Scheme = Literal["2:4", "2:4-int8", "dense", "dense-int8"]
StoredWeight = Tensor | Packed | DenseInt8  # a weight [out, in]

TWO_OF_FOUR: tuple[Scheme, ...] = ("2:4", "2:4-int8")


def scheme_bytes(scheme: Scheme, rows: int, columns: int, dtype: torch.dtype, scale_columns: int = 0) -> int:
    """The bytes of a weight [rows, columns]. dtype: of the model. scale_columns: of 2:4 in int8, 0: a scale a row."""
    if scheme == "dense-int8":
        return int8_bytes(rows, columns)
    if scheme == "dense":
        return rows * columns * dtype.itemsize
    kept, positions = columns * KEEP // GROUP, -(-columns // 8)
    if scheme == "2:4":
        return rows * (kept * dtype.itemsize + positions)
    return rows * (kept + positions + 4 * scale_count(columns, scale_columns))


def scheme_of(weight: StoredWeight) -> Scheme:
    """The scheme that a weight is stored in."""
    if isinstance(weight, Packed):
        return "2:4" if weight.scales is None else "2:4-int8"
    return "dense-int8" if isinstance(weight, DenseInt8) else "dense"


def stored(weight: Tensor, scheme: Scheme, dtype: torch.dtype, name: str = "weight") -> StoredWeight:
    """Store a weight [out, in] in a scheme, rounded to nearest even where it is rounded. dtype: of the model.

    Raises PatternError, naming the weight, where the scheme is 2:4 and the weight is not.
    """
    if scheme == "2:4":
        return pack(weight.to(dtype), name)
    if scheme == "2:4-int8":
        return to_int8(pack(weight, name))
    return weight.to(dtype) if scheme == "dense" else to_dense_int8(weight, name)


def expanded(weight: StoredWeight) -> Tensor:  # [out, in]
    """The weight with its zeros; float32 where the stored values are int8."""
    return weight if isinstance(weight, Tensor) else weight.unpack()


def parts(weight: StoredWeight) -> dict[str, Tensor]:
    """The stored tensors of a weight by the names under which a folder holds them."""
    return {"weight": weight} if isinstance(weight, Tensor) else weight.tensors()
