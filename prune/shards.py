"""The weight files of a model folder: one safetensors file, or shards and their index.

A packed folder's files carry the transformers variant name (`model.twofour.safetensors`), a dense folder's none
(`model.safetensors`), so that no plain loader takes one for the other. A folder with both is refused.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from twofour.prune.errors import CheckpointError
from twofour.prune.folder import read_json, write_json

VARIANT = "twofour"
MAX_SHARD_BYTES = 5_000_000_000


@dataclass(frozen=True)
class Shards:
    """Where every tensor of a folder is."""

    folder: Path
    files: Mapping[str, str]  # tensor -> file name

    def read(self, name: str) -> Tensor:
        """Read one tensor. Raises CheckpointError where it is absent or cannot be read."""
        if name not in self.files:
            raise CheckpointError(f"{self.folder} has no tensor {name}; take an intact copy of the folder")
        with open_file(self.folder / self.files[name]) as file:
            return _tensor(file, name, self.files[name])

    @property
    def file_names(self) -> list[str]:
        return sorted(set(self.files.values()))


def open_file(path: Path) -> Any:  # a safetensors handle, which has no type
    """Open a weight file. Raises CheckpointError where it is missing, cut short or no safetensors file."""
    try:
        return safe_open(path, framework="pt")
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} is missing; take an intact copy of the folder") from error
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is corrupt ({error}); take an intact copy of the folder") from error


def _tensor(file: Any, name: str, file_name: str) -> Tensor:
    try:
        tensor: Tensor = file.get_tensor(name)
    except SafetensorError as error:
        raise CheckpointError(f"{file_name} lacks {name}; take an intact copy of the folder") from error
    return tensor


def single_name(variant: str | None) -> str:
    return f"model.{variant}.safetensors" if variant else "model.safetensors"


def index_name(variant: str | None) -> str:
    return f"model.safetensors.index.{variant}.json" if variant else "model.safetensors.index.json"


def shard_name(variant: str | None, number: int, count: int) -> str:
    stem = f"model.{variant}" if variant else "model"
    return f"{stem}-{number:05}-of-{count:05}.safetensors"


def variant_of(folder: Path) -> str | None:
    """Say which variant a folder holds. Raises CheckpointError unless it is exactly one."""
    found = [v for v in (None, VARIANT) if any((folder / name(v)).exists() for name in (single_name, index_name))]
    if len(found) == 2:
        raise CheckpointError(
            f"{folder} holds two variants, {single_name(None)} and {single_name(VARIANT)}; remove one of them"
        )
    if not found:
        raise CheckpointError(
            f"{folder} holds neither {single_name(None)} nor {single_name(VARIANT)}; give a folder with safetensors"
        )
    return found[0]


def open_shards(folder: Path) -> Shards:
    """Find every tensor of a folder. Raises CheckpointError where a file or its index is missing or corrupt."""
    variant = variant_of(folder)
    single = folder / single_name(variant)
    if single.exists():
        with open_file(single) as file:
            return Shards(folder, dict.fromkeys(file.keys(), single.name))
    index = read_json(folder / index_name(variant))
    files = index.get("weight_map")
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise CheckpointError(f"{folder / index_name(variant)} has no weight_map; take an intact copy")
    for name in sorted(set(files.values())):
        if Path(name).name != name or not (folder / name).is_file():
            raise CheckpointError(f"{folder / name} is missing; take an intact copy of the folder")
    return Shards(folder, files)


@dataclass
class ShardWriter:
    """Writes tensors in the order given, a full shard at a time; `with` names the files when all are there."""

    folder: Path
    variant: str | None
    max_shard_bytes: int = MAX_SHARD_BYTES
    _pending: dict[str, Tensor] = field(default_factory=dict)
    _written: list[list[str]] = field(default_factory=list)  # the names in each shard
    _total_bytes: int = 0

    def add(self, name: str, tensor: Tensor) -> None:
        size = sum(waiting.nbytes for waiting in self._pending.values())
        if self._pending and size + tensor.nbytes > self.max_shard_bytes:
            self._write()
        self._pending[name] = tensor.contiguous()
        self._total_bytes += tensor.nbytes

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._write()
            self._name_files()

    def _write(self) -> None:
        save_file(self._pending, self._temporary(len(self._written)), metadata={"format": "pt"})
        self._written.append(list(self._pending))
        self._pending.clear()

    def _name_files(self) -> None:
        count = len(self._written)
        if count == 1:
            self._temporary(0).rename(self.folder / single_name(self.variant))
            return
        weight_map: dict[str, str] = {}
        for position, names in enumerate(self._written):
            file = shard_name(self.variant, position + 1, count)
            self._temporary(position).rename(self.folder / file)
            weight_map |= dict.fromkeys(names, file)
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": weight_map}
        write_json(self.folder / index_name(self.variant), index)

    def _temporary(self, position: int) -> Path:
        return self.folder / f"shard-{position}.partial"
