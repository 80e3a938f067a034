"""A folder that another tool made 2:4: which of its linears are, and the first label it gets here.

Old checkpoints of compressed-tensors are read (`format.bitmask`), and plain folders that hold the zeros. Nothing is
pruned: a linear of a plain folder or of sparse-bitmask that is not 2:4 stays dense, and the label says so. What the
pruning cost is not known here, and the label claims nothing of it.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from twofour.prune.errors import CheckpointError
from twofour.prune.format import bitmask, pattern
from twofour.prune.format.bitmask import Expanded
from twofour.prune.format.checkpoint import MANIFEST
from twofour.prune.format.origin import origin
from twofour.prune.format.quantization import PLAIN_VERSION
from twofour.prune.label.described import anatomy_of, linears_of
from twofour.prune.label.publish import CONVERTED
from twofour.prune.machine.provenance import versions
from twofour.prune.model.anatomy import Anatomy


def read(folder: Path, config: Mapping[str, Any], weights: Expanded) -> dict[str, Any]:
    """Return the label of a folder; its linears are those that are 2:4.

    Raises ModelError or CheckpointError where there is none, or the tensors are not those of config.json.
    """
    bitmask.refuse(config, weights)
    anatomy = anatomy_of(config, weights)
    expected = linears_of(anatomy, weights)
    _require_same_names(anatomy, weights, expected)
    packed = {name: shape for name, shape in expected.items() if _is_two_of_four(weights, name)}
    if not packed:
        raise CheckpointError(
            f'{folder} has no {MANIFEST} that says which linears are 2:4, and none of them is; run "twofour prune"'
        )
    return {
        "format_version": PLAIN_VERSION,
        "pattern": "2:4",
        "method": "unknown",
        CONVERTED: _form(config, weights),
        "source": origin(str(folder), folder),
        "linears": {name: {"shape": list(shape)} for name, shape in packed.items()},
        "dense": {name: _why_dense(weights) for name in expected if name not in packed},
        "quality": {},
        "versions": versions(),
    }


def _require_same_names(anatomy: Anatomy, weights: Expanded, expected: Collection[str]) -> None:
    """Raise CheckpointError for a linear that is missing, and for what is expanded without a place in config.json."""
    if missing := [name for name in expected if f"{name}.weight" not in weights]:
        raise CheckpointError(f"{missing[0]}.weight is missing; take an intact copy of the model")
    named = {name for name, _ in anatomy.model.named_parameters(remove_duplicate=False)}
    known = named | {f"{name}.weight" for name in expected}
    if strangers := [name for name in weights.masked if name not in known]:
        raise CheckpointError(
            f"{strangers[0]} is stored by a bitmask, but not in config.json; take all files of one model"
        )


def _is_two_of_four(weights: Expanded, name: str) -> bool:
    if weights.two_of_four:
        return name in weights.two_of_four
    weight = weights[f"{name}.weight"]
    return weight.shape[-1] % pattern.GROUP == 0 and pattern.first_violation(weight) is None


def _why_dense(weights: Expanded) -> str:
    return "dense in what this was converted from" if weights.two_of_four else "not 2:4 in what this was converted from"


def _form(config: Mapping[str, Any], weights: Expanded) -> str:
    if weights.two_of_four:
        return "sparse-24-bitmask"
    return "sparse-bitmask" if weights.masked else "dense with zeros"
