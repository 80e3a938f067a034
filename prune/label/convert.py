"""From one form of a pruned model to another: packed, dense with zeros, or the old `sparse-24-bitmask`.

What round trips: packed to packed, and float values packed to dense to packed, give the same tensors bit for bit. int8
values become dense in the dtype of the model, each product of value and scale rounded to nearest even, and so does
lm_head in int8, which is not tied to the embeddings then. Packing that gives values of that dtype, which unpack to the
same dense weights; it does not give int8 again, for nothing here quantises. The label then says that they were int8
once.

Only what `check` finds no fault with is converted: new digests would make damage look intact.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from twofour.prune.errors import CheckpointError
from twofour.prune.format import Format, bitmask, checkpoint, head
from twofour.prune.format.checkpoint import MANIFEST, SparseWeight, Weights
from twofour.prune.format.folder import new_folder, read_config, read_json, write_json
from twofour.prune.format.packed import Packed
from twofour.prune.label import publish
from twofour.prune.label.check import anatomy_of, check, linears_of, read_packed
from twofour.prune.machine.provenance import versions

# What a linear M may be stored as, in any of the forms: M.weight and so on.
PARTS = (
    *("weight", "values", "positions", "scales"),
    *(f"{prefix}{part}" for prefix in bitmask.PREFIXES for part in bitmask.PARTS),
)
FAULTS_SHOWN = 3


def convert(folder: Path, out: Path, to: Format) -> None:
    """Write the same model in another form. The label goes with it, with new digests."""
    config = read_config(folder)
    with new_folder(out) as part, Weights(folder) as weights:
        linears, manifest = _read(folder, config, weights)
        if to == "dense":
            linears = {name: _dequantised(linear, config) for name, linear in linears.items()}
        is_int8 = checkpoint.has_int8_head(config)
        kinds = {checkpoint.values_kind(linear) for linear in linears.values()}
        known = checkpoint.quantization_config(kinds, checkpoint.others(weights, linears), is_int8)
        rest = ((name, weights[name]) for name in weights if not _belongs_to(name, linears))
        stored = _stored(rest, linears, to)
        if is_int8 and to == "dense":
            stored, config["tie_word_embeddings"] = _with_dense_head(stored, weights, known["values_dtype"]), False
        checkpoint.write_weights(part, stored, to)
        for key in bitmask.CONFIGS:
            config.pop(key, None)
        if to == "packed":
            config["quantization_config"] = known
        write_json(part / "config.json", config)
        checkpoint.copy_rest(folder, part)
        publish.write(part, _relabelled(manifest, to, *next(iter(kinds))), out.name)


def _read(
    folder: Path, config: Mapping[str, Any], weights: Weights
) -> tuple[dict[str, SparseWeight], Mapping[str, Any]]:
    """Return the pruned linears and the label of a folder. Raises CheckpointError or ModelError, naming its faults."""
    if (folder / MANIFEST).exists():
        _require_intact(folder)
        manifest = read_json(folder / MANIFEST)
        return {name: _linear(weights, name, config) for name in manifest["linears"]}, manifest
    bitmask.refuse(config, weights)
    if not (names := bitmask.linears(weights)):
        raise CheckpointError(f'{folder} has no {MANIFEST} that says which linears are 2:4; run "twofour prune"')
    linears: dict[str, SparseWeight] = {name: bitmask.read(weights, name) for name in names}
    return linears, _first_label(linears, linears_of(anatomy_of(config, weights), weights))


def _require_intact(folder: Path) -> None:
    faults = check(folder).faults
    if faults:
        more = f"; and {len(faults) - FAULTS_SHOWN} more" if len(faults) > FAULTS_SHOWN else ""
        raise CheckpointError(f"{folder} is not what twofour wrote: {'; '.join(faults[:FAULTS_SHOWN])}{more}")


def _linear(weights: Weights, name: str, config: Mapping[str, Any]) -> SparseWeight:
    if weights.form == "dense":
        return weights[f"{name}.weight"]
    return read_packed(weights, name, config["quantization_config"])


def _dequantised(linear: SparseWeight, config: Mapping[str, Any]) -> SparseWeight:
    """Expand int8 values to the dtype of the model, rounded to nearest even; leave others as they are."""
    if not isinstance(linear, Packed) or linear.scales is None:
        return linear
    dtype = checkpoint.named_dtype(config)
    assert dtype is not None  # `check` asks for it
    return linear.unpack().to(dtype)


def _with_dense_head(
    stored: Iterator[tuple[str, Tensor]], weights: Weights, dtype: str
) -> Iterator[tuple[str, Tensor]]:
    name, packed = head.read(weights)
    yield from (each for each in stored if each[0].removeprefix(f"{name}.") not in head.PARTS)
    yield f"{name}.weight", packed.unpack(checkpoint.value_dtype(dtype))


def _belongs_to(name: str, linears: Mapping[str, SparseWeight]) -> bool:
    return any(name.endswith(f".{part}") and name.removesuffix(f".{part}") in linears for part in PARTS)


def _stored(
    rest: Iterator[tuple[str, Tensor]], linears: Mapping[str, SparseWeight], to: Format
) -> Iterator[tuple[str, Tensor]]:
    yield from rest
    for name, linear in linears.items():
        yield from checkpoint.linear_tensors(name, linear, to)


def _first_label(linears: Mapping[str, SparseWeight], expected: Mapping[str, tuple[int, int]]) -> dict[str, Any]:
    """The label of a model that twofour did not prune. Raises CheckpointError unless its linears are these."""
    for name, linear in linears.items():
        if tuple(linear.shape) != expected.get(name):
            by_config = f"by config.json it is {list(expected[name])}" if name in expected else "not in config.json"
            raise CheckpointError(f"{name} has shape {list(linear.shape)}, {by_config}; take an intact copy")
    return {
        "format_version": checkpoint.FORMAT_VERSION,
        "pattern": "2:4",
        "method": "unknown",
        "converted_from": "sparse-24-bitmask",
        "linears": {name: {"shape": list(linear.shape)} for name, linear in linears.items()},
        "dense": {name: "dense in what this was converted from" for name in expected if name not in linears},
        "versions": versions(),
    }


def _relabelled(manifest: Mapping[str, Any], to: Format, dtype: str, scale_columns: int) -> dict[str, Any]:
    """Say on a label what the values and lm_head are now, and that they were int8 before."""
    before, head_before = manifest.get("values") or {}, manifest.get("lm_head") or {}
    now: dict[str, Any] = {"dtype": dtype} | ({"scale_columns": scale_columns} if dtype == "int8" else {})
    if before.get("dtype") == "int8" != dtype:
        now["rounded_once_to"] = _rounding(before)
    elif "rounded_once_to" in before:
        now["rounded_once_to"] = before["rounded_once_to"]
    if head_before.get("dtype") == "int8" and to == "dense":
        head_now = {"dtype": dtype, "rounded_once_to": _rounding(head_before)}
        return {**manifest, "format_version": checkpoint.FORMAT_VERSION, "values": now, "lm_head": head_now}
    return {**manifest, "values": now}


def _rounding(before: Mapping[str, Any]) -> dict[str, Any]:
    return {key: before[key] for key in ("dtype", "scale_columns") if key in before}
