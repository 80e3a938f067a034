"""From one form of a pruned model to another: packed or dense with zeros, or one that another tool wrote (`foreign`).

What round trips: packed to packed, and float values packed to dense to packed, give the same tensors bit for bit. int8
values become dense in the dtype of the model, each product of value and scale rounded to nearest even, and so does
lm_head in int8, which is not tied to the embeddings then. Packing that gives values of that dtype, which unpack to the
same dense weights; it does not give int8 again, for nothing here quantises. The label then says that they were int8
once.

Only what `check` finds no fault with is converted: new digests would make damage look intact. Linears are read when
they are written, one at a time.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from twofour.prune.errors import CheckpointError, ModelError
from twofour.prune.format import Format, checkpoint, dense_int8, head
from twofour.prune.format.bitmask import CONFIGS, Expanded
from twofour.prune.format.checkpoint import MANIFEST, Weights
from twofour.prune.format.folder import new_folder, read_config, read_json, write_json
from twofour.prune.format.packed import pack
from twofour.prune.format.quantization import PLAIN_VERSION, Kind, has_int8_head, kind_of, quantization_config, stated
from twofour.prune.format.schemes import TWO_OF_FOUR, Scheme, StoredWeight, expanded
from twofour.prune.label import foreign, publish
from twofour.prune.label.check import check
from twofour.prune.label.described import read_packed
from twofour.prune.label.manifest import shares

PARTS = ("weight", "values", "positions", "scales", *dense_int8.PARTS)  # a linear M may be stored as M.weight and so on
FAULTS_SHOWN = 3
Read = Callable[[str], StoredWeight]  # a linear by its name
Values = dict[str, Any]  # `values` of a label


def convert(folder: Path, out: Path, to: Format) -> Mapping[str, Any]:
    """Write the same model in another form. The label goes with it, with new digests, and is returned."""
    config = read_config(folder)
    with new_folder(out) as part, _opened(folder) as weights:
        manifest = foreign.read(folder, config, weights) if isinstance(weights, Expanded) else _labelled(folder)
        readers, is_int8 = _readers(manifest, weights, config, to), has_int8_head(config)
        kinds: dict[str, Kind] = {}  # filled while weights are written, for they are read only then
        stored = _stored(weights, readers, to, kinds)
        if is_int8 and to == "dense":
            stored, config["tie_word_embeddings"] = _with_dense_head(stored, weights, kinds), False
        checkpoint.write_weights(part, stored, to)
        values = _reconfigure(part, config, kinds, is_int8)
        checkpoint.copy_rest(folder, part)
        manifest = _relabelled(manifest, to, values, part)
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


def _readers(manifest: Mapping[str, Any], weights: Weights, config: Mapping[str, Any], to: Format) -> dict[str, Read]:
    """What reads each linear that is 2:4, or dense in int8, in the form that will be written."""
    linears = list(manifest["linears"])
    if weights.form == "dense":
        return dict.fromkeys(linears, partial(_with_zeros, weights, to))
    quantization = config["quantization_config"]
    int8 = (quantization.get("schemes") or {}).get("dense-int8", [])
    kinds = stated(quantization, linears)
    found: dict[str, Read] = {name: partial(read_packed, weights, kind=kind) for name, kind in kinds.items()}
    found |= dict.fromkeys(int8, partial(dense_int8.read, weights))
    return found if to == "packed" else {name: partial(_dequantised, read, config) for name, read in found.items()}


def _with_zeros(weights: Weights, to: Format, name: str) -> StoredWeight:
    """Read a 2:4 linear of a dense folder."""
    weight = weights[f"{name}.weight"]
    return pack(weight, name) if to == "packed" else weight


def _dequantised(read: Read, config: Mapping[str, Any], name: str) -> Tensor:
    """Read a linear with its zeros; int8 values in the dtype of the model, rounded to nearest even."""
    weight = expanded(read(name))
    dtype = checkpoint.named_dtype(config)
    return weight if dtype is None else weight.to(dtype)  # None: float values, `check` asks for it with int8


def _stored(
    weights: Weights, readers: Mapping[str, Read], to: Format, kinds: dict[str, Kind]
) -> Iterator[tuple[str, Tensor]]:
    for name in weights:
        module, _, part = name.rpartition(".")
        if part not in PARTS or module not in readers:
            yield name, weights[name]
    for name, read in readers.items():
        linear = read(name)
        kinds[name] = kind_of(linear)
        yield from checkpoint.linear_tensors(name, linear, to)


def _with_dense_head(
    stored: Iterator[tuple[str, Tensor]], weights: Weights, kinds: Mapping[str, Kind]
) -> Iterator[tuple[str, Tensor]]:
    name, packed = head.read(weights)
    yield from (each for each in stored if each[0].removeprefix(f"{name}.") not in dense_int8.PARTS)
    yield f"{name}.weight", packed.unpack(checkpoint.value_dtype(_dtype(kinds)))


def _dtype(kinds: Mapping[str, Kind]) -> str:
    """The dtype of linears that were written dense. Raises ModelError where there are several."""
    dtypes = {kind.dtype for kind in kinds.values()}
    if len(dtypes) != 1:
        names = ", ".join(sorted(dtypes))
        raise ModelError(f"the linears have values of several kinds, {names}; give a model with one dtype")
    return dtypes.pop()


def _reconfigure(part: Path, config: dict[str, Any], kinds: Mapping[str, Kind], is_int8: bool) -> Values:
    """Write the config.json of the weights that were written, and return what their values are now.

    Raises ModelError where they are of two kinds.
    """
    for key in CONFIGS:
        config.pop(key, None)
    with Weights(part) as written:
        if written.form == "packed":
            known = quantization_config(kinds, checkpoint.others(written, kinds), is_int8)
            config["quantization_config"] = known
            now = {"dtype": known["values_dtype"]}
            now |= {"scale_columns": known["scale_columns"]} if now["dtype"] == "int8" else {}
        else:
            now = {"dtype": _dtype(kinds)}
    if now["dtype"] != "int8":
        checkpoint.say_dtype(config, checkpoint.value_dtype(now["dtype"]))
    write_json(part / "config.json", config)
    return now


def _relabelled(manifest: Mapping[str, Any], to: Format, now: Values, part: Path) -> dict[str, Any]:
    """Say on a label what the values and lm_head are now, and that they were int8 before."""
    before, head_before = manifest.get("values") or {}, manifest.get("lm_head") or {}
    if before.get("dtype") == "int8" != now["dtype"]:
        now = {**now, "rounded_once_to": _rounding(before)}
    elif "rounded_once_to" in before:
        now = {**now, "rounded_once_to": before["rounded_once_to"]}
    if to == "packed":
        return {**manifest, "values": now}
    dense = {**manifest, "format_version": PLAIN_VERSION, "values": now, **_schemes(manifest, now["dtype"], part)}
    if head_before.get("dtype") == "int8":
        dense["lm_head"] = {"dtype": now["dtype"], "rounded_once_to": _rounding(head_before)}
    return dense


def _schemes(manifest: Mapping[str, Any], dtype: str, part: Path) -> dict[str, Any]:
    """What a label says of schemes once int8 values are floats: those that there are, and those that there were."""
    before: Mapping[str, Scheme] = manifest.get("schemes") or {}
    now: dict[str, Scheme] = {name: "2:4" if scheme in TWO_OF_FOUR else "dense" for name, scheme in before.items()}
    if now == before:
        return {}
    with Weights(part) as written:
        shapes = {name: written.shape(f"{name}.weight") for name in now}
    once = {name: scheme for name, scheme in before.items() if scheme != now[name]}
    return {
        "schemes": now,
        "shares": shares(now, shapes, checkpoint.value_dtype(dtype)),
        "schemes_once": {**(manifest.get("schemes_once") or {}), **once},
    }


def _rounding(before: Mapping[str, Any]) -> dict[str, Any]:
    return {key: before[key] for key in ("dtype", "scale_columns") if key in before}
