"""The old form of 2:4 weights, `sparse-24-bitmask`, as compressed-tensors up to 0.14 wrote it.

A linear M is `M.compressed` [out, in / 2], the kept values in input order, `M.bitmask` uint8 [out, ceil(in / 8)], bits
little-endian, 1: kept, and `M.shape` int64 [2, 1]; in older files `M.weight.compressed` and so on. All three say how
large the weight is: they must agree before anything of that size is made.

Refused by name: values that are not floats (they are codes of a quantisation, whose scales are elsewhere), and
`sparse-bitmask`, which is not 2:4 and has `row_offsets` as well.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from twofour.prune.errors import CheckpointError, ModelError
from twofour.prune.format import pattern
from twofour.prune.format.packed import FLOAT_DTYPES
from twofour.prune.format.pattern import GROUP, KEEP
from twofour.prune.format.weights import Weights

PARTS = ("compressed", "bitmask", "shape")
PREFIXES = ("", "weight.")
CONFIGS = ("quantization_config", "compression_config")  # where config.json says what compressed-tensors did


def linears(weights: Weights) -> list[str]:
    """The names of the linears that are stored in this form."""
    found = [name.removesuffix(".bitmask") for name in weights if name.endswith(".bitmask")]
    return [name.removesuffix(".weight") for name in found]


def refuse(config: Mapping[str, Any], weights: Weights) -> None:
    """Raise ModelError for a checkpoint of compressed-tensors that is not, or not only, 2:4."""
    if offsets := [name for name in weights if name.endswith(".row_offsets")]:
        raise ModelError(
            f"the weights are sparse-bitmask, which is not 2:4 ({offsets[0]}); decompress them with compressed-tensors "
            'and run "twofour prune"'
        )
    if scales := [name for name in weights if name.endswith((".weight_scale", ".weight_packed"))]:
        raise _quantised(scales[0])
    for key in CONFIGS:
        stated = config.get(key)
        if isinstance(stated, Mapping) and stated.get("config_groups"):
            raise _quantised(f"config_groups in {key} of config.json")


def _quantised(evidence: str) -> ModelError:
    return ModelError(
        f"the weights are quantised besides being 2:4 ({evidence}), which only float values are read from; "
        "give the checkpoint that was not quantised"
    )


def read(weights: Weights, name: str) -> Tensor:  # [out, in]
    """Read and expand one linear. Raises CheckpointError or PatternError where its tensors do not fit together."""
    for prefix in PREFIXES:
        stored = [f"{name}.{prefix}{part}" for part in PARTS]
        if all(tensor in weights for tensor in stored):
            compressed, bitmask, shape = (weights[tensor] for tensor in stored)
            if compressed.dtype not in FLOAT_DTYPES:
                raise _quantised(f"{stored[0]} is {compressed.dtype}")
            weight = expand(compressed, bitmask, shape, name)
            pattern.require(weight, name)
            return weight
    raise CheckpointError(f"{name} lacks one of {', '.join(PARTS)}; take an intact copy of the model")


def expand(compressed: Tensor, bitmask: Tensor, shape: Tensor, name: str = "weight") -> Tensor:  # -> [out, in]
    """Put the values where the bits are."""
    rows, columns = _size(compressed, bitmask, shape, name)
    bits = bitmask.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8) & 1
    kept = bits.flatten(-2)[:, :columns].bool()
    if int(kept.sum()) != compressed.numel():
        raise CheckpointError(f"the bitmask of {name} does not fit its values; take an intact copy of the model")
    weight = compressed.new_zeros(rows, columns)
    weight[kept] = compressed.flatten()
    return weight


def _size(compressed: Tensor, bitmask: Tensor, shape: Tensor, name: str) -> tuple[int, int]:
    rows, half = compressed.shape if compressed.dim() == 2 else (0, 0)
    columns = half * GROUP // KEEP
    said = shape.flatten().tolist() if shape.numel() == 2 else list(shape.shape)
    fits = said == [rows, columns] and bitmask.shape == (rows, -(-columns // 8)) and rows * columns > 0
    if not fits or bitmask.dtype != torch.uint8:
        raise CheckpointError(
            f"{name} is {said} by its shape, but its values are {list(compressed.shape)}, its bitmask "
            f"{bitmask.dtype} {list(bitmask.shape)}; take an intact copy of the model"
        )
    return rows, columns
