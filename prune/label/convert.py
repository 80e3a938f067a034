"""From one form of a pruned model to another: packed or dense with zeros, or one that another tool wrote (`foreign`).

What round trips: packed to packed, and float values packed to dense to packed, give the same tensors bit for bit. int8
values become dense in the dtype of the model, each product of value and scale rounded to nearest even, and so does
lm_head in int8, which is not tied to the embeddings then. Packing that gives values of that dtype, which unpack to the
same dense weights; it does not give int8 again, for nothing here quantises. The label then says that they were int8
once.

Only what `check` finds no fault with is converted: new digests would make damage look intact. Linears are read when
they are written, one at a time.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from twofour.prune.errors import CheckpointError
from twofour.prune.format import Format, checkpoint, head
from twofour.prune.format.bitmask import CONFIGS, Expanded
from twofour.prune.format.checkpoint import MANIFEST, SparseWeight, ValuesKind, Weights
from twofour.prune.format.folder import new_folder, read_config, read_json, write_json
from twofour.prune.format.packed import Packed
from twofour.prune.label import foreign, publish
from twofour.prune.label.check import check, read_packed

PARTS = ("weight", "values", "positions", "scales")  # what a linear M may be stored as: M.weight and so on
FAULTS_SHOWN = 3
Read = Callable[[str], SparseWeight]  # a linear by its name


def convert(folder: Path, out: Path, to: Format) -> Mapping[str, Any]:
    """Write the same model in another form. The label goes with it, with new digests, and is returned."""
    config = read_config(folder)
    with new_folder(out) as part, _opened(folder) as weights:
        manifest = foreign.read(folder, config, weights) if isinstance(weights, Expanded) else _labelled(folder)
        read, is_int8 = _reader(weights, config, to), checkpoint.has_int8_head(config)
        kinds: set[ValuesKind] = set()  # filled while weights are written, for they are read only then
        stored = _stored(weights, manifest["linears"], read, to, kinds)
        if is_int8 and to == "dense":
            stored, config["tie_word_embeddings"] = _with_dense_head(stored, weights, kinds), False
        checkpoint.write_weights(part, stored, to)
        _reconfigure(part, config, kinds, is_int8)
        checkpoint.copy_rest(folder, part)
        manifest = _relabelled(manifest, to, *next(iter(kinds)))
        publish.write(part, manifest, out.name)
    return manifest


def _opened(folder: Path) -> Weights:
    return Weights(folder) if (folder / MANIFEST).exists() else Expanded(folder)


def _labelled(folder: Path) -> Mapping[str, Any]:
    """Read the label of a folder that twofour wrote. Raises CheckpointError, naming its faults."""
    if faults := check(folder).faults:
        more = f"; and {len(faults) - FAULTS_SHOWN} more" if len(faults) > FAULTS_SHOWN else ""
        raise CheckpointError(f"{folder} is not what twofour wrote: {'; '.join(faults[:FAULTS_SHOWN])}{more}")
    return read_json(folder / MANIFEST)


def _reader(weights: Weights, config: Mapping[str, Any], to: Format) -> Read:
    if weights.form == "dense":
        return lambda name: weights[f"{name}.weight"]
    packed = partial(read_packed, weights, quantization=config["quantization_config"])
    return packed if to == "packed" else lambda name: _dequantised(packed(name), config)


def _dequantised(packed: Packed, config: Mapping[str, Any]) -> SparseWeight:
    """Expand int8 values to the dtype of the model, rounded to nearest even; leave others as they are."""
    if packed.scales is None:
        return packed
    dtype = checkpoint.named_dtype(config)
    assert dtype is not None  # `check` asks for it
    return packed.unpack().to(dtype)


def _stored(
    weights: Weights, linears: Collection[str], read: Read, to: Format, kinds: set[ValuesKind]
) -> Iterator[tuple[str, Tensor]]:
    for name in weights:
        module, _, part = name.rpartition(".")
        if part not in PARTS or module not in linears:
            yield name, weights[name]
    for name in linears:
        linear = read(name)
        kinds.add(checkpoint.values_kind(linear))
        yield from checkpoint.linear_tensors(name, linear, to)


def _with_dense_head(
    stored: Iterator[tuple[str, Tensor]], weights: Weights, kinds: set[ValuesKind]
) -> Iterator[tuple[str, Tensor]]:
    name, packed = head.read(weights)
    yield from (each for each in stored if each[0].removeprefix(f"{name}.") not in head.PARTS)
    dtype, _ = next(iter(kinds))
    yield f"{name}.weight", packed.unpack(checkpoint.value_dtype(dtype))


def _reconfigure(part: Path, config: dict[str, Any], kinds: set[ValuesKind], is_int8: bool) -> None:
    """Write the config.json of the weights that were written. Raises ModelError where their values are of two kinds."""
    with Weights(part) as written:
        rest = checkpoint.others(written, written.bases())
        known = checkpoint.quantization_config(kinds, rest, is_int8)
        packed = written.form == "packed"
    for key in CONFIGS:
        config.pop(key, None)
    if packed:
        config["quantization_config"] = known
    if known["values_dtype"] != "int8":
        checkpoint.say_dtype(config, checkpoint.value_dtype(known["values_dtype"]))
    write_json(part / "config.json", config)


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
