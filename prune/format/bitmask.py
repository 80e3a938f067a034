"""The old forms of 2:4 weights, `sparse-24-bitmask` and `sparse-bitmask`, as compressed-tensors up to 0.14 wrote them.

A linear M is `M.compressed`, the kept values in input order, `M.bitmask` uint8 [out, ceil(in / 8)], bits
little-endian, 1: kept, and `M.shape` int64 [2, 1]. In sparse-24-bitmask the values are [out, in / 2], two for each
group of four, zeros among them where a group has fewer. sparse-bitmask, which older versions wrote for 2:4 models, too,
has them in one row, zeros left out, and `M.row_offsets`; up to 0.8 it stored every tensor so, `M.weight.compressed` and
so on, biases and norms as well. All parts say how large the weight is: they must agree before anything of that size is
made.

Refused by name: values that are not floats, and all else that is quantised besides: its scales lie elsewhere.
"""

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twofour.prune.errors import CheckpointError, ModelError
from twofour.prune.format import pattern
from twofour.prune.format.weights import Weights, is_finite

PARTS = ("compressed", "bitmask", "shape")
OFFSETS = "row_offsets"  # of sparse-bitmask alone; the bits say it, too
CONFIGS = ("quantization_config", "compression_config")  # where config.json says what compressed-tensors did
METHOD = "compressed-tensors"
FORMATS = ("dense", "sparse-24-bitmask", "sparse-bitmask")
MAX_DIMENSIONS = 8  # that a shape may name: it is read before anything is known of a file
FLOATS = ("BF16", "F16", "F32")
QUANTISED = (".weight_scale", ".weight_packed", ".scale_packed", ".weight_zero_point")


class Expanded(Weights):
    """The tensors of another tool's folder by their names in the dense model, each expanded when it is read.

    masked: those that are stored by a bitmask. two_of_four: the modules whose weight is stored as sparse-24-bitmask.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, "dense")
        stored = list(super().__iter__())
        found = [name.removesuffix(".bitmask") for name in stored if name.endswith(".bitmask")]
        self._base_of = {_dense_name(base): base for base in found}
        parts = {f"{base}.{part}" for base in found for part in (*PARTS, OFFSETS)}
        self.masked = list(self._base_of)
        self._names = [*self.masked, *(name for name in stored if name not in parts)]
        if len(self._base_of) != len(found):
            twice = next(base for base in found if base not in self._base_of.values())
            raise CheckpointError(f"{twice} is stored twice by a bitmask, by two names; take an intact copy")
        self.two_of_four: set[str] = set()
        for name, base in self._base_of.items():
            self._require_parts(name, base, stored)
        self._shape_of = {name: self._agreed_shape(base) for name, base in self._base_of.items()}

    def _require_parts(self, name: str, base: str, stored: list[str]) -> None:
        if any(f"{base}.{part}" not in stored for part in PARTS):
            raise CheckpointError(f"{base} lacks one of {', '.join(PARTS)}; take an intact copy of the model")
        if prod(super().shape(f"{base}.shape")) > MAX_DIMENSIONS:
            raise CheckpointError(f"{base}.shape is no shape of a weight; take an intact copy of the model")
        if name in stored:
            raise CheckpointError(f"{name} is stored twice, by itself and by a bitmask; take an intact copy")
        if (found := super().dtype(f"{base}.compressed")) not in FLOATS:
            raise _quantised(f"{base}.compressed is {found}")
        if f"{base}.{OFFSETS}" not in stored:
            self.two_of_four.add(name.removesuffix(".weight"))

    def _agreed_shape(self, base: str) -> tuple[int, ...]:
        """The shape that is said, which must be that of the bits and the values. Nothing large is read for it."""
        said = super().__getitem__(f"{base}.shape").flatten().tolist()
        values, bits = (super(Expanded, self).shape(f"{base}.{part}") for part in ("compressed", "bitmask"))
        return agreed_shape(said, values, bits, base, _dense_name(base).removesuffix(".weight") in self.two_of_four)

    def __getitem__(self, name: str) -> Tensor:
        base = self._base_of.get(name)
        if base is None:
            tensor = super().__getitem__(name)
        else:
            values, bits = (super(Expanded, self).__getitem__(f"{base}.{part}") for part in ("compressed", "bitmask"))
            tensor = expand(values, bits, self._shape_of[name], base)
        if (module := name.removesuffix(".weight")) in self.two_of_four:
            pattern.require(tensor, module)
        if not is_finite(tensor):
            raise CheckpointError(f"{name} holds NaN or infinity; take an intact copy of the model")
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def shape(self, name: str) -> tuple[int, ...]:
        return self._shape_of[name] if name in self._shape_of else super().shape(name)

    def dtype(self, name: str) -> str:
        return super().dtype(f"{self._base_of[name]}.compressed" if name in self._base_of else name)


def _dense_name(base: str) -> str:
    return base if base.endswith((".weight", ".bias")) else f"{base}.weight"


def refuse(config: Mapping[str, Any], weights: Weights) -> None:
    """Raise ModelError for a checkpoint that is quantised, be it 2:4 or not, or of another sparse format."""
    if scales := [name for name in weights if name.endswith(QUANTISED)]:
        raise _quantised(scales[0])
    for key in CONFIGS:
        stated = config.get(key)
        if not isinstance(stated, Mapping):
            continue
        method, sparsity = stated.get("quant_method", METHOD), stated.get("sparsity_config")
        if method != METHOD or stated.get("config_groups"):
            raise _quantised(f"{key} of config.json, {method}, format {stated.get('format')}")
        form = sparsity.get("format", FORMATS[0]) if isinstance(sparsity, Mapping) else FORMATS[0]
        if form not in FORMATS:
            raise ModelError(
                f"the weights are {form} by config.json, read are {', '.join(FORMATS)}; "
                "decompress them with the tool that wrote them"
            )


def _quantised(evidence: str) -> ModelError:
    return ModelError(
        f"the weights are quantised ({evidence}), and only float values are read from other tools; "
        "give the checkpoint that was not quantised"
    )


def agreed_shape(
    said: list[Any], values: tuple[int, ...], bits: tuple[int, ...], name: str, two_of_four: bool = True
) -> tuple[int, ...]:
    """The shape of a weight of which the parts have these. Raises CheckpointError unless they fit together."""
    sizes = tuple(said) if said and all(type(size) is int and size > 0 for size in said) else (0,)
    half = (*sizes[:-1], sizes[-1] // 2)
    fits = bits == (*sizes[:-1], -(-sizes[-1] // 8)) and (values == half if two_of_four else len(values) == 1)
    if not fits or 0 in sizes or (two_of_four and len(sizes) != 2):
        raise CheckpointError(
            f"{name} is {said} by its shape, but its values are {list(values)}, its bitmask {list(bits)}; "
            "take an intact copy of the model"
        )
    return sizes


def expand(compressed: Tensor, bitmask: Tensor, shape: tuple[int, ...], name: str = "weight") -> Tensor:  # -> [*shape]
    """Put the values where the bits are. Raises CheckpointError unless there are as many."""
    if bitmask.dtype != torch.uint8:
        raise CheckpointError(f"the bitmask of {name} is {bitmask.dtype}, not uint8; take an intact copy of the model")
    bits = bitmask.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8) & 1
    kept = bits.flatten(-2)[..., : shape[-1]].bool()
    if int(kept.sum()) != compressed.numel():
        raise CheckpointError(f"the bitmask of {name} does not fit its values; take an intact copy of the model")
    return compressed.new_zeros(shape).masked_scatter_(kept, compressed)
