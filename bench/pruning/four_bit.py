"""Dense weights as 4 bits would have them: rounded, and kept in their dtype. A simulation: no kernel reads 4 bits here.

Symmetric, in groups of 32 columns of a row:

    scale = max |w| / 7         rounded to bfloat16, as it would be stored
    value = round(w / scale)    to the nearest integer, ties to even, within -7 and 7
    w is read back as value * scale, in float32, then rounded to the weight's dtype

That takes half a byte a weight, and two bytes for each group: 0.5625. A group of zeros stays zero. Nothing makes up for
the rounding (as GPTQ would), so this is the least that 4 bits can do.
"""

from collections.abc import Collection, Iterator
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from twofour.prune.format.checkpoint import copy_rest, write_weights
from twofour.prune.format.folder import new_folder, read_config, write_json
from twofour.prune.format.weights import Weights

GROUP = 32  # columns that share a scale
LARGEST = 7


def rounded(weight: Tensor) -> Tensor:  # [out, in] -> the same
    """Round a weight as it is read back from 4 bits."""
    columns = weight.shape[1]
    groups = functional.pad(weight.float(), (0, -columns % GROUP)).unflatten(1, (-1, GROUP))  # [out, groups, 32]
    scales = (groups.abs().amax(-1, keepdim=True) / LARGEST).bfloat16().float()
    values = torch.where(scales > 0, groups / scales, 0).round().clamp(-LARGEST, LARGEST)
    return (values * scales).flatten(1)[:, :columns].to(weight.dtype)


def four_bit_bytes(rows: int, columns: int) -> int:
    """The bytes that a weight [rows, columns] would take."""
    return rows * (-(-columns // 2) + 2 * -(-columns // GROUP))


def write_rounded(source: Path, out: Path, linears: Collection[str]) -> None:
    """Write a dense model with the linears of these names rounded, all else as it is."""
    names = {f"{name}.weight" for name in linears}
    with new_folder(out) as folder:
        with Weights(source, "dense") as tensors:
            write_weights(folder, _replaced(tensors, names), "dense")
        write_json(folder / "config.json", read_config(source))
        copy_rest(source, folder)


def _replaced(tensors: Weights, names: set[str]) -> Iterator[tuple[str, Tensor]]:
    for name in tensors:
        yield name, rounded(tensors[name]) if name in names else tensors[name]
