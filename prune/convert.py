"""From one form of a pruned model to another: packed, dense with zeros, or the old `sparse-24-bitmask`.

The old form, written by compressed-tensors up to 0.14, stores `M.compressed` [out, in/2], `M.bitmask`
uint8 [out, ceil(in/8)] (bits little-endian, 1: kept) and `M.shape` [2, 1].

What round trips: packed to packed, and float values packed to dense to packed, give the same tensors bit for bit.
int8 values become dense in the dtype of the model, each product of value and scale rounded to nearest even; packing
that gives values of that dtype, which unpack to the same dense weights, and not the int8 values again: nothing here
quantises.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twofour.prune import checkpoint, label
from twofour.prune.audit import read_packed
from twofour.prune.checkpoint import MANIFEST, SparseWeight, Weights
from twofour.prune.errors import CheckpointError
from twofour.prune.folder import new_folder, read_config, read_json, write_json
from twofour.prune.packed import Packed, validate
from twofour.prune.recipe import Format

# What a linear M may be stored as, in any of the forms: M.weight and so on.
PARTS = ("weight", "values", "positions", "scales", "weight.compressed", "weight.bitmask", "weight.shape")


def convert(folder: Path, out: Path, to: Format) -> None:
    """Write the same model in another form. The label goes with it, with new digests."""
    config = read_config(folder)
    with new_folder(out) as part, Weights(folder) as weights:
        if weights.form == "packed":
            checkpoint.require_known(config.get("quantization_config") or {})
        linears = {name: _linear(weights, name, config) for name in _linear_names(folder, weights)}
        if to == "dense":
            linears = {name: _dequantised(linear, name, config) for name, linear in linears.items()}
        rest = ((name, weights[name]) for name in weights if not _belongs_to(name, linears))
        checkpoint.write_weights(part, _stored(rest, linears, to), to)
        config.pop("quantization_config", None)
        if to == "packed":
            kinds = {checkpoint.values_kind(linear) for linear in linears.values()}
            config["quantization_config"] = checkpoint.quantization_config(kinds, checkpoint.others(weights, linears))
        write_json(part / "config.json", config)
        checkpoint.copy_rest(folder, part)
        label.write(part, _manifest(folder, linears), out.name)


def _linear_names(folder: Path, weights: Weights) -> list[str]:
    if packed := weights.bases():
        return packed
    if old := [name.removesuffix(".bitmask") for name in weights if name.endswith(".bitmask")]:
        return [name.removesuffix(".weight") for name in old]
    if (folder / MANIFEST).exists():
        return list(read_json(folder / MANIFEST).get("linears", {}))
    raise CheckpointError(f'{folder} has no {MANIFEST} that says which linears are 2:4; run "twofour prune"')


def _linear(weights: Weights, name: str, config: dict[str, Any]) -> SparseWeight:
    if f"{name}.weight" in weights:
        return weights[f"{name}.weight"]
    if f"{name}.weight.bitmask" in weights:
        return from_bitmask(*(weights[f"{name}.weight.{part}"] for part in ("compressed", "bitmask", "shape")))
    packed = read_packed(weights, name, config.get("quantization_config") or {})
    validate(packed, name)
    return packed


def _dequantised(linear: SparseWeight, name: str, config: dict[str, Any]) -> SparseWeight:
    """Expand int8 values to the dtype of the model, rounded to nearest even; leave others as they are."""
    if not isinstance(linear, Packed) or linear.scales is None:
        return linear
    dtype = checkpoint.named_dtype(config)
    if dtype is None:
        raise CheckpointError(f"config.json names no dtype to write {name} in; take an intact copy of the model")
    return linear.unpack().to(dtype)


def from_bitmask(compressed: Tensor, bitmask: Tensor, shape: Tensor) -> Tensor:
    """Expand the old form: [out, in/2] and uint8 [out, ceil(in/8)] to [out, in]."""
    rows, columns = (int(size) for size in shape.flatten())
    bits = bitmask.unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8) & 1
    kept = bits.flatten(-2)[:, :columns].bool()
    if int(kept.sum()) != compressed.numel():
        raise CheckpointError("a bitmask does not fit its values; take an intact copy of the model")
    weight = compressed.new_zeros(rows, columns)
    weight[kept] = compressed.flatten()
    return weight


def _belongs_to(name: str, linears: dict[str, SparseWeight]) -> bool:
    return any(name.endswith(f".{part}") and name.removesuffix(f".{part}") in linears for part in PARTS)


def _stored(
    rest: Iterator[tuple[str, Tensor]], linears: dict[str, SparseWeight], to: Format
) -> Iterator[tuple[str, Tensor]]:
    yield from rest
    for name, linear in linears.items():
        yield from checkpoint.linear_tensors(name, linear, to)


def _manifest(folder: Path, linears: dict[str, SparseWeight]) -> dict[str, Any]:
    if (folder / MANIFEST).exists():
        return read_json(folder / MANIFEST)
    shapes = {name: {"shape": list(linear.shape)} for name, linear in linears.items()}
    return {
        "format_version": checkpoint.FORMAT_VERSION,
        "pattern": "2:4",
        "method": "unknown",
        "linears": shapes,
    }
