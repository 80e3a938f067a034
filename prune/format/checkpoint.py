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

from twofour.prune.errors import CheckpointError
from twofour.prune.format import Format
from twofour.prune.format.folder import read_config, write_json
from twofour.prune.format.head import Head
from twofour.prune.format.packed import Packed
from twofour.prune.format.quantization import FLOATS as FLOATS
from twofour.prune.format.quantization import Kind, kind_of, quantization_config
from twofour.prune.format.quantization import dtype_name as dtype_name
from twofour.prune.format.quantization import named_dtype as named_dtype
from twofour.prune.format.quantization import value_dtype as value_dtype
from twofour.prune.format.schemes import StoredWeight, parts
from twofour.prune.format.weights import INDEXES, STEMS
from twofour.prune.format.weights import VARIANT as VARIANT
from twofour.prune.format.weights import Weights as Weights
from twofour.prune.format.weights import form_of as form_of

MANIFEST = "twofour.json"
SHARD_BYTES = 5_000_000_000
WEIGHT_SUFFIXES = (".bin", ".pt", ".pth", ".gguf", ".h5", ".msgpack")


def require_loaded(report: Mapping[str, Any], model: Path | str) -> None:
    """Raise CheckpointError if transformers reports a weight that was missing, misshapen or not used."""
    if missing := sorted(report["missing_keys"]) + sorted(str(key) for key in report["mismatched_keys"]):
        raise CheckpointError(f"{model} lacks {missing[0]} in its proper shape; take an intact copy of the model")
    if strangers := sorted(report["unexpected_keys"]):
        raise CheckpointError(
            f"{model} holds {strangers[0]}, which its config.json has no place for; take all files of one model"
        )


def write_model(
    folder: Path, source: Path, weights: Mapping[str, StoredWeight], form: Format, head: Head | None = None
) -> None:
    """Write a model with some linears replaced, all else as it is. weights: by the names they are stored under.

    head: lm_head, to become int8; the form is packed then.
    """
    with Weights(source, "dense") as tensors:
        kinds: dict[str, Kind] = {}  # filled while weights are written, for they are made only then
        write_weights(folder, _replaced(tensors, weights, form, kinds, head), form)
        config = read_config(source)
        if form == "packed":
            replaced = {name for name, kind in kinds.items() if kind.scheme != "dense"}
            rest = others(tensors, {*replaced, head.name} if head else replaced)
            config["quantization_config"] = quantization_config(kinds, rest, head is not None)
        say_dtype(config, FLOATS.get(tensors.dtype(f"{next(iter(weights))}.weight")))
    write_json(folder / "config.json", config)
    copy_rest(source, folder)


def _replaced(
    tensors: Weights, weights: Mapping[str, StoredWeight], form: Format, kinds: dict[str, Kind], head: Head | None
) -> Iterator[tuple[str, Tensor]]:
    for name in tensors:
        base = name.removesuffix(".weight")
        if base != name and base in weights:
            weight = weights[base]
            kinds[base] = kind_of(weight)
            yield from linear_tensors(base, weight, form)
        elif head is None or head.tied or name != head.source:
            yield name, tensors[name]
    if head:
        yield from head.rounded(tensors)


def linear_tensors(base: str, weight: StoredWeight, form: Format) -> Iterator[tuple[str, Tensor]]:
    """The tensors that are stored for one weight, by name. Int8 values have no dense form of their own: cast first."""
    dense = weight.unpack() if form == "dense" and isinstance(weight, Packed) else weight
    for part, tensor in parts(dense).items():
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


def others(tensors: Weights, weights: Collection[str]) -> list[str]:
    """Name the modules whose matrices stay dense, and lm_head, even where it is tied or int8 and so not stored."""
    matrices = (name for name in tensors if name.endswith(".weight") and len(tensors.shape(name)) == 2)
    found = {name.removesuffix(".weight") for name in matrices}
    return sorted(found.difference(weights) | {"lm_head"})


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


def copy_rest(source: Path, folder: Path) -> None:
    """Carry over tokenizer, templates, generation settings and licence: all but weights, config and manifest."""
    for path in source.iterdir():
        belongs = path.is_file() and not path.name.startswith(".") and path.name not in ("config.json", MANIFEST)
        weights = ".safetensors" in path.name or path.suffix in WEIGHT_SUFFIXES
        if belongs and not weights and not (folder / path.name).exists():
            shutil.copyfile(path, folder / path.name)


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
