"""Where config.json, the label and the tensors of a pruned folder contradict each other."""

from collections.abc import Iterator

from twofour.prune.errors import CheckpointError
from twofour.prune.format import checkpoint, dense_int8, head
from twofour.prune.format.checkpoint import MANIFEST
from twofour.prune.format.quantization import (
    MIXED_VERSION,
    PLAIN_VERSION,
    has_int8_head,
    named_dtype,
    value_dtype,
)
from twofour.prune.format.schemes import TWO_OF_FOUR
from twofour.prune.label.described import Model
from twofour.prune.label.manifest import shares


def find(model: Model) -> Iterator[str]:
    """Name every contradiction."""
    for faults in (_int8_faults, _head_faults, _dense_faults, _label_faults, _scheme_faults, _strangers):
        yield from faults(model)


def _head_faults(model: Model) -> Iterator[str]:
    """What is wrong with lm_head in int8."""
    is_int8, label = has_int8_head(model.config), model.manifest.get("lm_head")
    if is_int8:
        try:
            name, packed = head.read(model.weights)
            _require_shape(tuple(packed.values.shape), model.head or (), name)
        except CheckpointError as error:
            yield str(error)
    says = label.get("dtype") if isinstance(label, dict) else None
    if is_int8 != (says == "int8") or not isinstance(label, dict | None):
        yield f"{MANIFEST} says lm_head {says or label!r}, config.json says otherwise; take an intact copy"


def _require_shape(found: tuple[int, ...], expected: tuple[int, ...], name: str) -> None:
    if found != expected:
        raise CheckpointError(f"{name} has shape {list(found)}, by config.json it has {list(expected)}")


def _int8_faults(model: Model) -> Iterator[str]:
    """What is wrong with dense linears in int8, or with their being there."""
    for name in model.in_int8:
        if name not in model.expected:
            yield f"config.json says that {name} is dense-int8, which is no linear of the decoder blocks"
            continue
        try:
            packed = dense_int8.read(model.weights, name)
            _require_shape(tuple(packed.values.shape), model.expected[name], name)
        except CheckpointError as error:
            yield str(error)
    known = {*model.in_int8, head.stored_name(model.weights) if has_int8_head(model.config) else None}
    named = {name.rpartition(".")[0] for name in model.weights if name.rpartition(".")[2] in dense_int8.PARTS}
    for name in sorted(named - known):
        yield f"{name} is stored in int8, but config.json does not say so; take an intact copy of the model"


def _dense_faults(model: Model) -> Iterator[str]:
    """Linears that the label leaves dense, and that are not there, or 2:4 by config.json."""
    for name in model.dense:
        scheme = model.schemes[name]
        if scheme in TWO_OF_FOUR:
            yield f"{name} is left dense by {MANIFEST}, by config.json it is {scheme}; take an intact copy"
        elif scheme == "dense" and f"{name}.weight" not in model.weights:
            yield f"{name}.weight is missing; take an intact copy of the model"


def _scheme_faults(model: Model) -> Iterator[str]:
    """Where the label says another scheme of a linear than config.json, or miscounts them."""
    schemes, said = model.schemes, model.manifest.get("schemes")
    if said is None and _version(model) == MIXED_VERSION:
        yield f"{MANIFEST} does not say the schemes of a mixed folder; take an intact copy"
    if said is None:
        return
    if not isinstance(said, dict):
        yield f"{MANIFEST} says schemes {said!r}, not that of each linear; take an intact copy"
        return
    for name in sorted(said.keys() | schemes.keys()):
        if said.get(name) != schemes.get(name):
            yield (
                f"{MANIFEST} says that {name} is {said.get(name)!r}, by config.json it is {schemes.get(name)!r}; "
                "take an intact copy"
            )
    yield from _share_faults(model)


def _share_faults(model: Model) -> Iterator[str]:
    dtype = named_dtype(model.config) or value_dtype(_values(model) or "float32")
    columns = int((model.config.get("quantization_config") or {}).get("scale_columns", 0))
    if model.manifest.get("shares") != (found := shares(model.schemes, model.expected, dtype, columns)):
        yield f"{MANIFEST} says other shares of the schemes than there are, {found}; take an intact copy"


def _strangers(model: Model) -> Iterator[str]:
    """Name what is packed and should not be, and an `ignore` that does not name what is left."""
    for name in sorted(set(model.weights.bases()) - set(model.pruned)):
        yield f"{name} is packed, but no linear that config.json and {MANIFEST} call pruned; take an intact copy"
    if model.weights.form == "packed":
        ignored = model.config["quantization_config"].get("ignore")
        if ignored != checkpoint.others(model.weights, {*model.weights.bases(), *model.in_int8}):
            yield "config.json ignores other modules than those that are not packed; take an intact copy"


def _label_faults(model: Model) -> Iterator[str]:
    """Where the manifest and the tensors contradict each other."""
    for name in model.pruned:
        if name not in model.listed:
            yield f"{name} belongs to the decoder blocks, but {MANIFEST} does not list it; take an intact copy"
    for name in sorted(model.listed.keys() - model.expected.keys()):
        yield f"{MANIFEST} lists {name}, which is no linear of the decoder blocks by config.json; take an intact copy"
    known = {"format_version": _version(model), "pattern": "2:4", "values": _values(model)}
    for key, found in known.items():
        said = model.manifest.get(key, found)
        said = said.get("dtype") if key == "values" and isinstance(said, dict) else said
        if said != found:
            yield f"{MANIFEST} says {key} {said!r}, the folder has {found!r}; take an intact copy or convert it again"


def _values(model: Model) -> str | None:
    """The dtype of the pruned weights as they are stored."""
    part = "values" if model.weights.form == "packed" else "weight"
    apart = ((model.config.get("quantization_config") or {}).get("schemes") or {}).get("2:4-int8", ())
    names = (name for name in model.pruned if name not in apart)
    stored = [f"{name}.{part}" for name in names if f"{name}.{part}" in model.weights]
    return checkpoint.dtype_name(model.weights[stored[0]].dtype) if stored else None


def _version(model: Model) -> int:
    """The format version of the folder; that of a dense form is 1."""
    quantization = model.config.get("quantization_config") or {}
    return int(quantization.get("format_version", PLAIN_VERSION))
