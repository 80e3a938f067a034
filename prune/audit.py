"""The verb `check`: is this folder what `prune` wrote? Every fault is found and named, not only the first."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from twofour.prune import checkpoint, pattern
from twofour.prune.checkpoint import MANIFEST, Weights
from twofour.prune.errors import CheckpointError, PatternError
from twofour.prune.folder import read_config, read_json
from twofour.prune.packed import Packed, validate
from twofour.prune.recipe import Format


@dataclass(frozen=True)
class Kind:
    """The linears that share their last name, such as q_proj."""

    linears: int
    weights: int
    zeros: int

    @property
    def sparsity(self) -> float:
        """Share of the weights that are zero."""
        return self.zeros / self.weights


@dataclass(frozen=True)
class Report:
    """What was found. `kinds`: the pruned linears by their last name."""

    folder: str
    form: Format | None
    kinds: dict[str, Kind] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.faults


def check(folder: Path | str) -> Report:
    """Verify pattern, shapes, digests and manifest of a pruned folder, packed or dense.

    Linears are only read where config.json says how.
    """
    folder = Path(folder)
    try:
        config, manifest = read_config(folder), read_json(folder / MANIFEST)
        weights = Weights(folder)
    except CheckpointError as error:
        return Report(str(folder), None, faults=[str(error)])
    unreadable = list(_config_faults(config, weights.form))
    faults = list(_manifest_faults(folder, manifest)) + unreadable
    kinds: defaultdict[str, list[Kind]] = defaultdict(list)
    with weights:
        for name in () if unreadable else manifest.get("linears", {}):
            try:
                kinds[name.rpartition(".")[2]].append(_kind(weights, name, manifest, config))
            except (CheckpointError, PatternError) as error:
                faults.append(str(error))
        faults += _strangers(weights, manifest)
    return Report(str(folder), weights.form, {name: _sum(found) for name, found in kinds.items()}, faults)


def _kind(weights: Weights, name: str, manifest: dict[str, Any], config: dict[str, Any]) -> Kind:
    weight = _packed(weights, name, config) if weights.form == "packed" else _dense(weights, name)
    expected = tuple(manifest["linears"][name]["shape"])
    if tuple(weight.shape) != expected:
        raise CheckpointError(f"{name} has shape {list(weight.shape)}, the manifest says {list(expected)}")
    return Kind(1, weight.numel(), int((weight == 0).sum()))


def _packed(weights: Weights, name: str, config: dict[str, Any]) -> torch.Tensor:
    packed = read_packed(weights, name, config["quantization_config"])
    validate(packed, name)
    weight = packed.unpack()
    _require_finite(weight, name)
    return weight


def read_packed(weights: Weights, name: str, quantization: dict[str, Any]) -> Packed:
    """Read the stored tensors of one linear. Raises CheckpointError where one is missing or of another dtype."""
    for part in ("values", "positions"):
        if f"{name}.{part}" not in weights:
            raise CheckpointError(f"{name}.{part} is missing; take an intact copy of the model")
    values, promised = weights[f"{name}.values"], quantization.get("values_dtype")
    if (found := checkpoint.dtype_name(values.dtype)) != promised:
        raise CheckpointError(f"{name} has {found} values, config.json says {promised}; take an intact copy")
    columns = int(quantization.get("scale_columns", 0))
    return Packed(values, weights[f"{name}.positions"], weights.get(f"{name}.scales"), columns)


def _dense(weights: Weights, name: str) -> torch.Tensor:
    if f"{name}.weight" not in weights:
        raise CheckpointError(f"{name}.weight is missing; take an intact copy of the model")
    weight = weights[f"{name}.weight"]
    _require_finite(weight, name)
    pattern.require(weight, name)
    return weight


def _require_finite(weight: torch.Tensor, name: str) -> None:
    if not bool(torch.isfinite(weight).all()):
        raise CheckpointError(f"{name} holds NaN or infinity; take an intact copy of the model")


def _sum(kinds: list[Kind]) -> Kind:
    return Kind(len(kinds), sum(kind.weights for kind in kinds), sum(kind.zeros for kind in kinds))


def _strangers(weights: Weights, manifest: dict[str, Any]) -> Iterator[str]:
    for name in set(weights.bases()) - set(manifest.get("linears", {})):
        yield f"{name} is packed but not in the manifest; prune again or convert from the dense form"


def _manifest_faults(folder: Path, manifest: dict[str, Any]) -> Iterator[str]:
    recorded = manifest.get("sha256")
    if not isinstance(recorded, dict) or not manifest.get("linears"):
        yield f"{MANIFEST} lists no linears or no digests; take an intact copy"
        return
    found = checkpoint.digests(folder)
    for name in sorted(recorded.keys() | found.keys()):
        if name not in found:
            yield f"{name} is missing, {MANIFEST} has its digest; take an intact copy"
        elif name not in recorded:
            yield f"{name} is not in {MANIFEST}; remove it or take an intact copy"
        elif recorded[name] != found[name]:
            yield f"{name} differs from its digest in {MANIFEST}; take an intact copy"


def _config_faults(config: dict[str, Any], form: Format) -> Iterator[str]:
    quantization = config.get("quantization_config") or {}
    if form == "dense":
        if quantization:
            yield "config.json names a quantization, but the weights are dense; take an intact copy"
        return
    try:
        checkpoint.require_known(quantization)
    except CheckpointError as error:
        yield str(error)
        return
    if quantization["values_dtype"] == "int8" and checkpoint.named_dtype(config) is None:
        yield "config.json names no dtype of the model, which int8 values do not tell; take an intact copy"
