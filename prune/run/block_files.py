"""The files of a journal: a pruned block as tensors, and what is said of it beside them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from twofour.prune.errors import CheckpointError
from twofour.prune.format.dense_int8 import SCALES, VALUES, DenseInt8
from twofour.prune.format.packed import Packed
from twofour.prune.format.schemes import StoredWeight, parts
from twofour.prune.label.manifest import PrunedLinear
from twofour.prune.recovery.training import Outcome
from twofour.prune.run.calibrate import PrunedBlock


def tensors(pruned: PrunedBlock) -> dict[str, Tensor]:
    stored = {name: parts(weight) for name, weight in pruned.weights.items()}
    return {f"{name}.{part}": tensor for name, each in stored.items() for part, tensor in each.items()}


def about(pruned: PrunedBlock) -> dict[str, Any]:
    columns = {name: w.scale_columns if isinstance(w, Packed) else None for name, w in pruned.weights.items()}
    return {
        "linears": {name: asdict(linear) for name, linear in pruned.linears.items()},
        "recovered": None if pruned.recovered is None else asdict(pruned.recovered),
        "scale_columns": columns,  # by weight; None: not packed
    }


def pruned(file: Any, about: Mapping[str, Any]) -> PrunedBlock:
    linears = {
        name: PrunedLinear(tuple(linear["shape"]), linear["loss"], linear["tokens"])
        for name, linear in about["linears"].items()
    }
    weights = {name: _weight(file, about, name) for name in about["scale_columns"]}
    return PrunedBlock(weights, linears, Outcome(**about["recovered"]) if about["recovered"] else None)


def read_weight(path: Path, name: str) -> StoredWeight:
    with opened(path) as file:
        return _weight(file, about_of(file), name)


def _weight(file: Any, about: Mapping[str, Any], name: str) -> StoredWeight:
    scale_columns = about["scale_columns"][name]
    held = set(file.keys())
    if f"{name}.{VALUES}" in held:
        return DenseInt8(*(file.get_tensor(f"{name}.{part}") for part in (VALUES, SCALES)))
    if scale_columns is None:
        weight: Tensor = file.get_tensor(f"{name}.weight")
        return weight
    values, positions = (file.get_tensor(f"{name}.{part}") for part in ("values", "positions"))
    scales = file.get_tensor(f"{name}.scales") if f"{name}.scales" in held else None
    return Packed(values, positions, scales, scale_columns)


def about_of(file: Any) -> dict[str, Any]:
    about: dict[str, Any] = json.loads(file.metadata()["about"])
    return about


@contextmanager
def opened(path: Path) -> Iterator[Any]:
    """Open a file of the run for reading, one tensor at a time."""
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not intact ({error}); remove its folder to start anew") from error
