"""Model folders in and out: the packed checkpoint, its dense twin, and the manifest of both.

For every 2:4 linear M a packed folder holds `M.values` [out, in / 2] and `M.positions` uint8 [out, ceil(in / 8)]
(see `packed`), a dense one `M.weight` with zeros. Every other tensor is the source's, unchanged.
"""

import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from twofour.prune.card import write_card
from twofour.prune.errors import CheckpointError, InputError, ModelError
from twofour.prune.folder import new_folder, read_json, sha256, write_json
from twofour.prune.packed import VALUE_DTYPES, Packed, pack
from twofour.prune.shards import MAX_SHARD_BYTES, VARIANT, Shards, ShardWriter, open_shards

__all__ = [
    "CONFIG",
    "MANIFEST",
    "Format",
    "is_packed",
    "linear_tensors",
    "new_folder",
    "packed_settings",
    "read_config",
    "read_packed",
    "resolve",
    "write_manifest",
    "write_model",
]

Format = Literal["packed", "dense"]
CONFIG, MANIFEST = "config.json", "twofour.json"
METHOD, FORMAT_VERSION, PATTERN = "twofour", 1, "2:4"
DTYPE_NAMES = {str(dtype).removeprefix("torch."): dtype for dtype in VALUE_DTYPES}

_HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")
_HUB_FILES = ["*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.md", "LICENSE*", "NOTICE*"]
_COPIED_SUFFIXES = {".json", ".txt", ".model", ".jinja", ".tiktoken"}
_COPIED_NAMES = re.compile(r"(LICEN[CS]E|NOTICE|COPYING|USE_POLICY).*")
_NOT_COPIED = re.compile(r"config\.json|twofour\.json|.*\.index(\.\w+)?\.json|.*\.bin|.*\.safetensors")


def resolve(model: str, revision: str | None = None) -> Path:
    """Return the folder of a model, fetched from the hub if it is a hub id."""
    if Path(model).is_dir():
        return Path(model)
    if not _HUB_ID.fullmatch(model) or Path(model).exists():
        raise InputError(f"{model} is not a model folder; give a folder or a hub id")
    return _download(model, revision)


def _download(model: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise InputError(
            f"{model} is not a folder here and cannot be fetched from the hub ({reason}); "
            "check the name and the network, or give a folder"
        ) from error


def read_config(folder: Path) -> dict[str, Any]:
    """Read config.json. Raises ModelError where the folder is no model folder."""
    if not (folder / CONFIG).is_file():
        raise ModelError(f"{folder} has no {CONFIG}; give a model folder in the Hugging Face layout")
    return read_json(folder / CONFIG)


def is_packed(config: Mapping[str, Any]) -> bool:
    """Whether config.json speaks of a packed 2:4 folder."""
    settings = config.get("quantization_config")
    return isinstance(settings, Mapping) and settings.get("quant_method") == METHOD


def packed_settings(values_dtype: str, ignore: Sequence[str]) -> dict[str, Any]:
    """Make the quantization_config of a packed folder."""
    return {
        "quant_method": METHOD,
        "format_version": FORMAT_VERSION,
        "pattern": PATTERN,
        "values_dtype": values_dtype,
        "ignore": list(ignore),
    }


def require_supported(settings: Mapping[str, Any]) -> None:
    """Raise CheckpointError, naming the fact, unless this version of twofour reads such a folder."""
    known = {"format_version": [FORMAT_VERSION], "pattern": [PATTERN], "values_dtype": list(DTYPE_NAMES)}
    for key, choices in known.items():
        if settings.get(key) not in choices:
            raise CheckpointError(
                f"quantization_config has {key} {settings.get(key)!r}, and this twofour reads "
                f"{' or '.join(map(str, choices))}; install a newer twofour or prune again"
            )


def linear_tensors(shards: Shards) -> dict[str, list[str]]:
    """Map every packed linear of a folder to the names of its tensors that are there."""
    found: dict[str, list[str]] = {}
    for name in shards.files:
        linear, _, part = name.rpartition(".")
        if part in ("values", "positions", "scales"):
            found.setdefault(linear, []).append(name)
    return found


def read_packed(shards: Shards, linear: str, scale_columns: int = 0) -> Packed:
    """Read one packed linear, unvalidated."""
    scales = f"{linear}.scales"
    return Packed(
        shards.read(f"{linear}.values"),
        shards.read(f"{linear}.positions"),
        shards.read(scales) if scales in shards.files else None,
        scale_columns,
    )


def write_model(
    folder: Path,
    source: Path,
    weights: Mapping[str, Tensor],
    format: Format,
    ignore: Sequence[str] = ("lm_head",),
    model: str | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
) -> None:
    """Write the folder of a pruned model, all but the manifest.

    weights: the 2:4 weight [out, in] of each pruned linear by module name (`model.layers.0.mlp.up_proj`); a mapping
    that reads lazily is never held whole. ignore: the linears left dense. model: what the source is called.
    """
    shards = open_shards(source)
    _require_in_source(shards, weights)
    dtype = _common_dtype(weights)
    with ShardWriter(folder, VARIANT if format == "packed" else None, max_shard_bytes) as writer:
        for name, tensor in _tensors(shards, weights, format):
            writer.add(name, tensor)
    config = read_config(source)
    config.pop("quantization_config", None)
    if format == "packed":
        config["quantization_config"] = packed_settings(dtype, ignore)
    write_json(folder / CONFIG, config)
    _copy_companions(source, folder)
    write_card(folder, source, format, model)


def _require_in_source(shards: Shards, weights: Mapping[str, Tensor]) -> None:
    for linear in weights:
        if f"{linear}.weight" not in shards.files:
            raise CheckpointError(f"{shards.folder} stores no {linear}.weight; this model cannot be rewritten")


def _common_dtype(weights: Mapping[str, Tensor]) -> str:
    names = {str(weights[linear].dtype).removeprefix("torch.") for linear in weights}
    if len(names) != 1 or not names <= set(DTYPE_NAMES):
        raise ModelError(
            f"the pruned weights have dtypes {sorted(names)}; give one of {', '.join(DTYPE_NAMES)} for all"
        )
    return names.pop()


def _tensors(shards: Shards, weights: Mapping[str, Tensor], format: Format) -> Iterator[tuple[str, Tensor]]:
    for name in shards.files:
        linear = name.removesuffix(".weight")
        if name == linear or linear not in weights:
            yield name, shards.read(name)
        elif format == "dense":
            yield name, weights[linear]
        else:
            packed = pack(weights[linear], linear)
            yield f"{linear}.values", packed.values
            yield f"{linear}.positions", packed.positions


def _copy_companions(source: Path, folder: Path) -> None:
    """Copy tokenizer, chat template, generation config and licence files: no weights, no code."""
    for path in sorted(source.iterdir()):
        wanted = path.suffix in _COPIED_SUFFIXES or _COPIED_NAMES.fullmatch(path.name)
        if path.is_file() and wanted and not _NOT_COPIED.fullmatch(path.name):
            shutil.copyfile(path, folder / path.name)


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write twofour.json, the last file of a folder: the manifest with the digests of config and weight files."""
    files = [CONFIG, *(path.name for path in sorted(folder.glob("model*.safetensors*")))]
    digests = {name: sha256(folder / name) for name in files}
    write_json(folder / MANIFEST, {**manifest, "files": digests})
