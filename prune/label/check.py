"""The verb `check`: is this folder what `prune` wrote? Every fault is found and named, not only the first."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from twofour.prune.errors import CheckpointError, PatternError, TwofourError
from twofour.prune.format import Format, checkpoint, dense_int8, pattern
from twofour.prune.format.checkpoint import MANIFEST, Weights
from twofour.prune.format.folder import read_config, read_json
from twofour.prune.format.packed import FLOAT_DTYPES, validate
from twofour.prune.format.quantization import require_known
from twofour.prune.format.schemes import TWO_OF_FOUR
from twofour.prune.format.weights import is_finite
from twofour.prune.label import contradictions
from twofour.prune.label.described import Model, anatomy_of, linears_of, read_packed
from twofour.prune.model.head import shape_of as head_shape


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
    """What was found. `kinds`: the pruned linears by their last name. `dense`: those that the label leaves dense."""

    folder: str
    form: Format | None
    kinds: dict[str, Kind] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)
    dense: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.faults


def check(folder: Path | str) -> Report:
    """Verify pattern, shapes, digests and manifest of a pruned folder, packed or dense.

    Which linears must be 2:4 follows from the model that config.json describes, not from the manifest. Linears are only
    read where config.json says how.
    """
    folder = Path(folder)
    try:
        config, manifest = read_config(folder), read_json(folder / MANIFEST)
        weights = Weights(folder)
    except CheckpointError as error:
        return Report(str(folder), None, faults=[str(error)])
    with weights:
        unreadable = list(_config_faults(config, weights.form))
        faults = [*_digest_faults(folder, manifest), *unreadable]
        if unreadable:
            return Report(str(folder), weights.form, faults=faults)
        try:
            described = anatomy_of(config, weights)
            model = Model(config, manifest, weights, linears_of(described, weights), head_shape(described.model))
        except TwofourError as error:
            return Report(str(folder), weights.form, faults=[*faults, str(error)])
        kinds: defaultdict[str, list[Kind]] = defaultdict(list)
        for name in model.pruned:
            try:
                kinds[name.rpartition(".")[2]].append(_kind(model, name))
            except (CheckpointError, PatternError) as error:
                faults.append(str(error))
        faults += [*_rest_faults(model), *contradictions.find(model)]
    counts = {name: _sum(found) for name, found in kinds.items()}
    return Report(str(folder), weights.form, counts, faults, model.dense)


def _kind(model: Model, name: str) -> Kind:
    read = _packed if model.weights.form == "packed" else _dense
    weight = read(model, name)
    _require_shape(tuple(weight.shape), model, name)
    _require_finite(weight, name)
    return Kind(1, weight.numel(), int((weight == 0).sum()))


def _require_shape(found: tuple[int, ...], model: Model, name: str) -> None:
    entry = model.listed.get(name)
    listed = entry.get("shape") if isinstance(entry, dict) else None
    if entry is not None and listed != list(found):
        raise CheckpointError(f"{name} has shape {list(found)}, the manifest says {listed}")
    if found != model.expected[name]:
        raise CheckpointError(f"{name} has shape {list(found)}, by config.json it has {list(model.expected[name])}")


def _packed(model: Model, name: str) -> torch.Tensor:
    if model.schemes[name] not in TWO_OF_FOUR:
        raise CheckpointError(
            f"{name} must be 2:4 by {MANIFEST}, by config.json it is {model.schemes[name]}; take an intact copy"
        )
    packed = read_packed(model.weights, name, model.kinds[name])
    validate(packed, name)
    return packed.unpack()


def _dense(model: Model, name: str) -> torch.Tensor:
    if f"{name}.weight" not in model.weights:
        raise CheckpointError(f"{name}.weight is missing; take an intact copy of the model")
    weight, named = model.weights[f"{name}.weight"], checkpoint.named_dtype(model.config)
    if weight.dtype not in FLOAT_DTYPES or weight.dtype != (named or weight.dtype):
        found, says = checkpoint.dtype_name(weight.dtype), checkpoint.dtype_name(named or weight.dtype)
        raise CheckpointError(f"{name} is stored as {found}, config.json says {says}; take an intact copy")
    pattern.require(weight, name)
    return weight


def _require_finite(weight: torch.Tensor, name: str) -> None:
    if not is_finite(weight):
        raise CheckpointError(f"{name} holds NaN or infinity; take an intact copy of the model")


def _sum(kinds: list[Kind]) -> Kind:
    return Kind(len(kinds), sum(kind.weights for kind in kinds), sum(kind.zeros for kind in kinds))


def _rest_faults(model: Model) -> Iterator[str]:
    """What is not finite of all that was not read yet: embeddings, norms, biases, routers, lm_head."""
    parts = ("weight", "values", "positions", "scales")
    read = {f"{name}.{part}" for name in model.pruned for part in parts}
    for name in model.weights:
        try:
            if name not in read and not name.endswith(f".{dense_int8.SCALES}"):
                _require_finite(model.weights[name], name)
        except CheckpointError as error:
            yield str(error)


def _digest_faults(folder: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
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


def _config_faults(config: Mapping[str, Any], form: Format) -> Iterator[str]:
    quantization = config.get("quantization_config") or {}
    if form == "dense":
        if quantization:
            yield "config.json names a quantization, but the weights are dense; take an intact copy"
        return
    try:
        require_known(quantization)
    except CheckpointError as error:
        yield str(error)
        return
    named, values = checkpoint.named_dtype(config), quantization["values_dtype"]
    if values == "int8" and named is None:
        yield "config.json names no dtype of the model, which int8 values do not tell; take an intact copy"
    if values != "int8" and named is not None and checkpoint.dtype_name(named) != values:
        yield f"config.json says {checkpoint.dtype_name(named)}, but has {values} values; take an intact copy"
