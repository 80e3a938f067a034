"""The weights of a model folder: which files hold them, and each tensor by its name.

A folder may say a thing twice: by a single file and an index beside it, by the index and the shards that it names, by
two files with a tensor of one name. Where the two differ, each reader would choose for itself: the folder is refused.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from twofour.prune.errors import CheckpointError
from twofour.prune.format import Format
from twofour.prune.format.folder import read_json

VARIANT = "twofour"
FORMS: tuple[Format, ...] = ("packed", "dense")
STEMS = {"dense": "model", "packed": f"model.{VARIANT}"}
INDEXES = {"dense": "model.safetensors.index.json", "packed": f"model.safetensors.index.{VARIANT}.json"}


def is_finite(tensor: Tensor) -> bool:
    """By the sum: one NaN or infinity spoils it, it takes no memory, and weights are far too small to overflow it."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor.sum(dtype=torch.float32)))


def form_of(folder: Path) -> Format:
    """Tell which form a folder holds. Raises CheckpointError unless it is exactly one."""
    found = [form for form in FORMS if _has(folder, form)]
    if len(found) != 1:
        fact = "both packed and dense weights" if found else "no model.safetensors or model.twofour.safetensors"
        raise CheckpointError(f"{folder} holds {fact}; give a folder with one of them")
    return found[0]


def _has(folder: Path, form: Format) -> bool:
    return (folder / single_file(form)).exists() or (folder / INDEXES[form]).exists()


def single_file(form: Format) -> str:
    """The name of the file of weights that are not sharded."""
    return f"{STEMS[form]}.safetensors"


class Weights(Mapping[str, Tensor]):
    """The tensors of a folder by name, read from disk one at a time. Used as a context manager.

    Raises CheckpointError, naming the file, where one is missing or is no safetensors file, or two contradict.
    """

    def __init__(self, folder: Path, form: Format | None = None) -> None:
        self.form = form or form_of(folder)
        index = folder / INDEXES[self.form]
        promised = _weight_map(index) if index.exists() else None
        self.files = _files(folder, self.form, promised)
        self._open = {path: _open(path) for path in self.files}
        self._file_of = _file_of(self._open)
        if promised is not None:
            _require_indexed(index.name, promised, self._file_of)

    def __getitem__(self, name: str) -> Tensor:
        file = self._open[self._file_of[name]]
        try:
            tensor: Tensor = file.get_tensor(name)
        except (SafetensorError, OSError, RuntimeError, ValueError, TypeError) as error:
            path = self._file_of[name]
            raise CheckpointError(f"{name} of {path} cannot be read ({error}); take an intact copy") from error
        return tensor

    def __iter__(self) -> Iterator[str]:
        return iter(self._file_of)

    def __len__(self) -> int:
        return len(self._file_of)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.clear()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, from the header of its file."""
        return tuple(self._open[self._file_of[name]].get_slice(name).get_shape())

    def dtype(self, name: str) -> str:
        """The dtype of a tensor as the header of its file names it, such as BF16."""
        return str(self._open[self._file_of[name]].get_slice(name).get_dtype())

    def bases(self) -> list[str]:
        """The names M for which M.values is stored."""
        return [name.removesuffix(".values") for name in self if name.endswith(".values")]

    def modules(self) -> set[str]:
        """The names of the modules that own a tensor."""
        return {name.rpartition(".")[0] for name in self}


def _files(folder: Path, form: Format, promised: Mapping[str, str] | None) -> list[Path]:
    """Name the weight files of a folder, all of which exist."""
    single, index = single_file(form), INDEXES[form]
    names = [single] if promised is None else sorted(set(promised.values()))
    present = {path.name for path in folder.iterdir()}
    if single in present and single not in names:
        raise CheckpointError(f"{folder} holds {single} and {index}, which names other files; remove one of them")
    for name in names:
        if Path(name).name != name:
            raise CheckpointError(f"{index} names {name}, which is outside the folder; take an intact copy")
        if name not in present:
            raise CheckpointError(f"{folder} lacks the shard {name}; take an intact copy of the model")
    return [folder / name for name in names]


def _weight_map(index: Path) -> dict[str, str]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CheckpointError(f"{index} has no weight_map; take an intact copy of the model")
    for tensor, file in weight_map.items():
        if not isinstance(file, str):
            raise CheckpointError(f"{index} names no file for {tensor}, but {file!r}; take an intact copy of the model")
    return weight_map


def _file_of(opened: Mapping[Path, Any]) -> dict[str, Path]:
    file_of: dict[str, Path] = {}
    for path, file in opened.items():
        for name in file.keys():  # noqa: SIM118
            if other := file_of.get(name):
                raise CheckpointError(f"{other.name} and {path.name} both hold {name}; take an intact copy")
            file_of[name] = path
    return file_of


def _require_indexed(index: str, promised: Mapping[str, str], file_of: Mapping[str, Path]) -> None:
    for name, file in promised.items():
        if name not in file_of or file_of[name].name != file:
            raise CheckpointError(f"{file} lacks the tensor {name} that {index} promises; take an intact copy")
    if unnamed := sorted(file_of.keys() - promised.keys()):
        file = file_of[unnamed[0]].name
        raise CheckpointError(f"{file} holds {unnamed[0]}, which {index} does not name; take an intact copy")


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not an intact safetensors file ({error}); take an intact copy") from error
