"""The verb `check`: is this folder what `prune` wrote? Every fault is found and named, not only the first."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from twofour.prune.errors import CheckpointError, PatternError, TwofourError
from twofour.prune.format import Format, checkpoint, head, pattern
from twofour.prune.format.checkpoint import MANIFEST, Weights
from twofour.prune.format.folder import read_config, read_json
from twofour.prune.format.packed import FLOAT_DTYPES, Packed, validate
from twofour.prune.format.weights import is_finite
from twofour.prune.model import experts
from twofour.prune.model.anatomy import Anatomy, dissect
from twofour.prune.model.head import shape_of as head_shape
from twofour.prune.model.skeleton import misfits, skeleton


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
        faults += [*_head_faults(model), *_rest_faults(model), *_label_faults(model), *_strangers(model)]
    counts = {name: _sum(found) for name, found in kinds.items()}
    return Report(str(folder), weights.form, counts, faults, model.dense)


@dataclass(frozen=True)
class Model:
    """A pruned folder taken apart.

    expected: the linears of its decoder blocks, with their shapes (out, in). head: the shape of lm_head.
    """

    config: Mapping[str, Any]
    manifest: Mapping[str, Any]
    weights: Weights
    expected: Mapping[str, tuple[int, int]]
    head: tuple[int, int] | None

    @property
    def listed(self) -> Mapping[str, Any]:
        """The linears that the label calls pruned."""
        linears = self.manifest.get("linears")
        return linears if isinstance(linears, dict) else {}

    @property
    def dense(self) -> list[str]:
        """The linears of the decoder blocks that the label leaves dense."""
        left = self.manifest.get("dense")
        return [name for name in self.expected if isinstance(left, dict) and name in left and name not in self.listed]

    @property
    def pruned(self) -> list[str]:
        """The linears of the decoder blocks that must be 2:4."""
        dense = set(self.dense)
        return [name for name in self.expected if name not in dense]


def anatomy_of(config: Mapping[str, Any], weights: Weights) -> Anatomy:
    """Take the model that config.json describes apart, without weights.

    Raises CheckpointError or ModelError where it describes no such model, or one of other shapes.
    """
    model = skeleton(config, weights)
    if faults := list(misfits(model, weights)):
        raise CheckpointError(faults[0])
    return dissect(model)


def linears_of(anatomy: Anatomy, weights: Weights) -> dict[str, tuple[int, int]]:
    """Return the linears of the decoder blocks, by the names they are stored under, with their shapes (out, in)."""
    stored = {f"{module}.weight" for module in weights.modules()}
    return {
        experts.stored_name(name, stored) or name: (linear.out_features, linear.in_features)
        for name, linear in anatomy.linears.items()
    }


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
    packed = read_packed(model.weights, name, model.config["quantization_config"])
    validate(packed, name)
    return packed.unpack()


def read_packed(weights: Weights, name: str, quantization: Mapping[str, Any]) -> Packed:
    """Read the stored tensors of one linear. Raises CheckpointError where one is missing or of another dtype."""
    for part in ("values", "positions"):
        if f"{name}.{part}" not in weights:
            raise CheckpointError(f"{name}.{part} is missing; take an intact copy of the model")
    if f"{name}.weight" in weights:
        raise CheckpointError(f"{name} is stored twice, packed and as {name}.weight; take an intact copy of the model")
    values, promised = weights[f"{name}.values"], quantization.get("values_dtype")
    if (found := checkpoint.dtype_name(values.dtype)) != promised:
        raise CheckpointError(f"{name} has {found} values, config.json says {promised}; take an intact copy")
    columns = int(quantization.get("scale_columns", 0))
    return Packed(values, weights[f"{name}.positions"], weights.get(f"{name}.scales"), columns)


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


def _head_faults(model: Model) -> Iterator[str]:
    """What is wrong with lm_head in int8, or with its being there."""
    is_int8, label = checkpoint.has_int8_head(model.config), model.manifest.get("lm_head")
    if is_int8:
        try:
            _require_head(model)
        except CheckpointError as error:
            yield str(error)
    named = {name.rpartition(".")[0] for name in model.weights if name.rpartition(".")[2] in head.PARTS}
    for name in sorted(named - {head.stored_name(model.weights) if is_int8 else None}):
        yield f"{name} is stored in int8, but config.json does not say so; take an intact copy of the model"
    says = label.get("dtype") if isinstance(label, dict) else None
    if is_int8 != (says == "int8") or not isinstance(label, dict | None):
        yield f"{MANIFEST} says lm_head {says or label!r}, config.json says otherwise; take an intact copy"


def _require_head(model: Model) -> None:
    name, packed = head.read(model.weights)
    if (found := tuple(packed.values.shape)) != model.head:
        raise CheckpointError(f"{name} has shape {list(found)}, by config.json it has {list(model.head or ())}")


def _rest_faults(model: Model) -> Iterator[str]:
    """What is not finite of all that was not read yet: embeddings, norms, biases, routers, lm_head."""
    parts = ("weight", "values", "positions", "scales")
    read = {f"{name}.{part}" for name in model.pruned for part in parts}
    for name in model.weights:
        try:
            if name not in read and not name.endswith(f".{head.SCALES}"):
                _require_finite(model.weights[name], name)
        except CheckpointError as error:
            yield str(error)


def _strangers(model: Model) -> Iterator[str]:
    """Name what is packed and should not be, and an `ignore` that does not name what is left."""
    for name in sorted(set(model.weights.bases()) - set(model.pruned)):
        yield f"{name} is packed, but no linear that config.json and {MANIFEST} call pruned; take an intact copy"
    if model.weights.form == "packed":
        ignored = model.config["quantization_config"].get("ignore")
        if ignored != checkpoint.others(model.weights, model.weights.bases()):
            yield "config.json ignores other modules than those that are not packed; take an intact copy"


def _label_faults(model: Model) -> Iterator[str]:
    """Where the manifest and the tensors contradict each other."""
    for name in model.pruned:
        if name not in model.listed:
            yield f"{name} belongs to the decoder blocks, but {MANIFEST} does not list it; take an intact copy"
    for name in sorted(model.listed.keys() - model.expected.keys()):
        yield f"{MANIFEST} lists {name}, which is no linear of the decoder blocks by config.json; take an intact copy"
    version = checkpoint.HEAD_VERSION if checkpoint.has_int8_head(model.config) else checkpoint.FORMAT_VERSION
    known = {"format_version": version, "pattern": "2:4", "values": _values(model)}
    for key, found in known.items():
        said = model.manifest.get(key, found)
        said = said.get("dtype") if key == "values" and isinstance(said, dict) else said
        if said != found:
            yield f"{MANIFEST} says {key} {said!r}, the folder has {found!r}; take an intact copy or convert it again"


def _values(model: Model) -> str | None:
    """The dtype of the pruned weights as they are stored."""
    part = "values" if model.weights.form == "packed" else "weight"
    stored = [f"{name}.{part}" for name in model.pruned if f"{name}.{part}" in model.weights]
    return checkpoint.dtype_name(model.weights[stored[0]].dtype) if stored else None


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
        checkpoint.require_known(quantization)
    except CheckpointError as error:
        yield str(error)
        return
    named, values = checkpoint.named_dtype(config), quantization["values_dtype"]
    if values == "int8" and named is None:
        yield "config.json names no dtype of the model, which int8 values do not tell; take an intact copy"
    if values != "int8" and named is not None and checkpoint.dtype_name(named) != values:
        yield f"config.json says {checkpoint.dtype_name(named)}, but has {values} values; take an intact copy"
