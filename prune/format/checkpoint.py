"""Model folders in and out, tensor by tensor, packed or dense.

The packed form carries the transformers variant name `twofour` (`model.twofour.safetensors`), so that a plain
`from_pretrained` finds no weights rather than the wrong ones. A folder holds one variant, never both.
"""

import hashlib
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from twofour.prune.errors import CheckpointError, ModelError
from twofour.prune.format import Format, tower
from twofour.prune.format.dense import Dense
from twofour.prune.format.folder import write_json
from twofour.prune.format.head import SCALES as HEAD_SCALES
from twofour.prune.format.head import VALUES as HEAD_VALUES
from twofour.prune.format.head import Head
from twofour.prune.format.packed import FLOAT_DTYPES, Packed, pack
from twofour.prune.format.weights import INDEXES, STEMS
from twofour.prune.format.weights import VARIANT as VARIANT
from twofour.prune.format.weights import Weights as Weights
from twofour.prune.format.weights import form_of as form_of

MANIFEST = "twofour.json"
FORMAT_VERSION, HEAD_VERSION = 1, 2  # the second: with lm_head in int8
SHARD_BYTES = 5_000_000_000
WEIGHT_SUFFIXES = (".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")
VALUE_DTYPES = ("bfloat16", "float16", "float32", "int8")
FLOATS = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}  # by the names of safetensors
SCALE_COLUMNS = (0, 64)  # columns that share a scale of int8 values; 0: all of a row

SparseWeight = Tensor | Packed  # a 2:4 weight [out, in], expanded or packed
ValuesKind = tuple[str, int]  # the dtype of a weight's values, and for how many columns there is a scale; 0: a row


def require_loaded(report: Mapping[str, Any], model: Path | str) -> None:
    """Raise CheckpointError if transformers reports a weight that was missing, misshapen or not used."""
    if missing := sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"]):
        raise CheckpointError(f"{model} lacks {missing[0]} in its proper shape; take an intact copy of the model")
    if strangers := sorted(report["unexpected_keys"]):
        raise CheckpointError(
            f"{model} holds {strangers[0]}, which its config.json has no place for; take all files of one model"
        )


def write_model(
    folder: Path, source: Path, weights: Mapping[str, SparseWeight], form: Format, head: Head | None = None
) -> None:
    """Write a model with some linears replaced, all else as it is. weights: by the names they are stored under.

    head: lm_head, to become int8; the form is packed then.
    """
    with Dense(source) as tensors:
        kinds: set[ValuesKind] = set()  # filled while weights are written, for they are made only then
        write_weights(folder, _replaced(tensors, weights, form, kinds, head), form)
        config, is_tower = tensors.config, tensors.tower is not None
        if form == "packed":
            rest = others(tensors, {*weights, head.name} if head else weights)
            config["quantization_config"] = quantization_config(kinds, rest, head is not None)
        say_dtype(config, FLOATS.get(tensors.dtype(f"{next(iter(weights))}.weight")))
    write_json(folder / "config.json", config)
    copy_rest(source, folder, is_tower)


def _replaced(
    tensors: Weights, weights: Mapping[str, SparseWeight], form: Format, kinds: set[ValuesKind], head: Head | None
) -> Iterator[tuple[str, Tensor]]:
    for name in tensors:
        base = name.removesuffix(".weight")
        if base != name and base in weights:
            weight = weights[base]
            kinds.add(values_kind(weight))
            yield from linear_tensors(base, weight, form)
        elif head is None or head.tied or name != head.source:
            yield name, tensors[name]
    if head:
        yield from head.rounded(tensors)


def linear_tensors(base: str, weight: SparseWeight, form: Format) -> Iterator[tuple[str, Tensor]]:
    """The tensors that are stored for one weight, by name. Int8 values have no dense form of their own: cast first."""
    if form == "dense":
        yield f"{base}.weight", weight.unpack() if isinstance(weight, Packed) else weight
        return
    packed = weight if isinstance(weight, Packed) else pack(weight, base)
    for part, tensor in packed.tensors().items():
        yield f"{base}.{part}", tensor


def say_dtype(config: dict[str, Any], stored: torch.dtype | None) -> None:
    """Let config.json name the dtype in which the linears were stored: loaders compute in the dtype that it names.

    It is left as it is where it names that dtype, or none and the values themselves show it.
    """
    is_named = config.get("dtype") or config.get("torch_dtype")
    is_int8 = (config.get("quantization_config") or {}).get("values_dtype") == "int8"
    if stored is not None and (is_named or is_int8) and named_dtype(config) != stored:
        config.pop("torch_dtype", None)
        config["dtype"] = dtype_name(stored)


def named_dtype(config: Mapping[str, Any]) -> torch.dtype | None:
    """The dtype of the model by config.json, if it names one that a model can have."""
    known = {dtype_name(dtype): dtype for dtype in FLOAT_DTYPES}
    return known.get(str(config.get("dtype") or config.get("torch_dtype")))


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a torch dtype as config.json has it."""
    return str(dtype).removeprefix("torch.")


def others(tensors: Weights, weights: Collection[str]) -> list[str]:
    """Name the modules whose matrices stay dense, and lm_head, even where it is tied or int8 and so not stored."""
    matrices = (name for name in tensors if name.endswith(".weight") and len(tensors.shape(name)) == 2)
    found = {name.removesuffix(".weight") for name in matrices}
    return sorted(found.difference(weights) | {"lm_head"})


def quantization_config(kinds: Collection[ValuesKind], ignore: list[str], int8_head: bool = False) -> dict[str, Any]:
    """What a loader needs to know, for config.json. kinds: of the packed weights. ignore: modules not packed."""
    if len(kinds) != 1:
        found = ", ".join(sorted(f"{dtype} (scale_columns {columns})" for dtype, columns in kinds))
        raise ModelError(f"the linears have values of several kinds, {found}; give a model with one dtype")
    ((dtype, columns),) = kinds
    if dtype not in VALUE_DTYPES or columns not in SCALE_COLUMNS:
        raise ModelError(
            f"values of {dtype} (scale_columns {columns}) cannot be stored; choose one of {', '.join(VALUE_DTYPES)}, "
            f"scale_columns {' or '.join(str(known) for known in SCALE_COLUMNS)}"
        )
    return {
        "quant_method": VARIANT,
        "format_version": HEAD_VERSION if int8_head else FORMAT_VERSION,
        "pattern": "2:4",
        "values_dtype": dtype,
        **({"scale_columns": columns} if dtype == "int8" else {}),
        **({"lm_head": "int8"} if int8_head else {}),
        "ignore": ignore,
    }


def has_int8_head(config: Mapping[str, Any]) -> bool:
    """Whether a config.json says that lm_head is stored in int8."""
    quantization = config.get("quantization_config")
    return isinstance(quantization, Mapping) and quantization.get("lm_head") == "int8"


def values_kind(weight: SparseWeight) -> ValuesKind:
    if isinstance(weight, Packed):
        return dtype_name(weight.values.dtype), weight.scale_columns
    return dtype_name(weight.dtype), 0


def require_known(quantization: Any) -> None:
    """Raise CheckpointError unless this quantization_config is that of a packed checkpoint that we can read."""
    if not isinstance(quantization, Mapping):
        raise CheckpointError(f"config.json has the quantization_config {quantization!r}; take an intact copy")
    is_int8 = quantization.get("values_dtype") == "int8"
    found = quantization if is_int8 else {"scale_columns": 0, **quantization}
    known: dict[str, tuple[Any, ...]] = {
        "quant_method": (VARIANT,),
        "format_version": (FORMAT_VERSION, HEAD_VERSION),
        "pattern": ("2:4",),
        "values_dtype": VALUE_DTYPES,
        "scale_columns": SCALE_COLUMNS if is_int8 else (0,),
        "lm_head": ("int8",) if quantization.get("format_version") == HEAD_VERSION else (None,),
    }
    for key, values in known.items():
        said = found.get(key)
        if not any(said == value and type(said) is type(value) for value in values):  # 64.0 is not 64
            raise CheckpointError(f"config.json says {key} {said!r}, known: {values}; upgrade twofour")


def require_kinds(tensors: Weights, quantization: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless what is packed has the dtypes that this quantization_config promises.

    transformers before 5.20 casts what it reads to the dtype of what it has a place for, floats to int8 among it.
    """
    stored = {dtype_name(dtype): name for name, dtype in FLOATS.items()} | {"int8": "I8"}
    kinds = {"values": stored[quantization["values_dtype"]], "positions": "U8", "scales": "F32"}
    kinds |= {HEAD_VALUES: "I8", HEAD_SCALES: "F32"}
    for name in tensors:
        expected = kinds.get(name.rpartition(".")[2])
        if expected and (found := tensors.dtype(name)) != expected:
            raise CheckpointError(
                f"{name} is {found}, by config.json it is {expected}; take an intact copy of the model"
            )


def write_weights(
    folder: Path, tensors: Iterable[tuple[str, Tensor]], form: Format, shard_bytes: int = SHARD_BYTES
) -> None:
    """Write tensors as one safetensors file, or as shards with an index."""
    shards: list[list[str]] = []
    for number, shard in enumerate(_shards(tensors, shard_bytes)):
        save_file(shard, folder / f"part-{number}", metadata={"format": "pt"})
        shards.append(list(shard))
    names = [_shard_name(form, number, len(shards)) for number in range(len(shards))]
    for number, name in enumerate(names):
        (folder / f"part-{number}").rename(folder / name)
    if len(shards) > 1:
        size = sum((folder / name).stat().st_size for name in names)
        weight_map = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        write_json(folder / INDEXES[form], {"metadata": {"total_size": size}, "weight_map": weight_map})


def _shards(tensors: Iterable[tuple[str, Tensor]], shard_bytes: int) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    for name, tensor in tensors:
        if shard and sum(t.nbytes for t in shard.values()) + tensor.nbytes > shard_bytes:
            yield shard
            shard = {}
        shard[name] = tensor.detach().cpu().contiguous()
    yield shard


def _shard_name(form: Format, number: int, count: int) -> str:
    suffix = f"-{number + 1:05d}-of-{count:05d}" if count > 1 else ""
    return f"{STEMS[form]}{suffix}.safetensors"


def copy_rest(source: Path, folder: Path, is_tower: bool = False) -> None:
    """Carry over tokenizer, templates, generation settings and licence: all but weights, config and manifest.

    is_tower: of the source only the text tower is here, so what reads images stays behind.
    """
    for path in source.iterdir():
        named = path.name not in ("config.json", MANIFEST, *(tower.FILES if is_tower else ()))
        belongs = named and path.is_file() and not path.name.startswith(".")
        weights = ".safetensors" in path.name or path.suffix in WEIGHT_SUFFIXES
        if belongs and not weights and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)
    if is_tower and (template := tower.template(source)):
        (folder / tower.TEMPLATE).write_text(template, encoding="utf-8")


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write twofour.json with the digests of what is there; the last file of a folder."""
    write_json(folder / MANIFEST, {**manifest, "sha256": digests(folder)})


def digests(folder: Path) -> dict[str, str]:
    """SHA-256 of config.json and of everything that belongs to the weights, by file name."""
    named = (path for path in folder.iterdir() if ".safetensors" in path.name or path.name == "config.json")
    paths = [path for path in named if path.is_file()]
    return {path.name: _sha256(path) for path in sorted(paths)}


def _sha256(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}); take an intact copy") from error


def value_dtype(name: str) -> torch.dtype:
    """The torch dtype of a name of `VALUE_DTYPES`."""
    dtype: torch.dtype = getattr(torch, name)
    return dtype
