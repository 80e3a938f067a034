"""Folders that hold linears of several schemes, 2:4 by magnitude, written without a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from twofour.prune.format import checkpoint, dense_int8
from twofour.prune.format.folder import new_folder
from twofour.prune.format.head import Head
from twofour.prune.format.quantization import MIXED_VERSION
from twofour.prune.format.schemes import TWO_OF_FOUR, Scheme, stored
from twofour.prune.label.manifest import shares
from twofour.prune.model.anatomy import dissect, load, stored_names
from twofour.prune.solving.magnitude import magnitude

Choose = Callable[[str], Scheme]  # by the name of a linear in its folder
TURNS: tuple[Scheme, ...] = ("dense-int8", "2:4", "2:4-int8", "dense")
GROUPS = (
    ("q_proj", "k_proj", "v_proj", "qkv_proj", "query_key_value"),
    ("o_proj", "dense", "out_proj"),
    ("gate_proj", "up_proj", "gate_up_proj", "dense_h_to_4h", "fc1", "w1", "w3"),
    ("down_proj", "dense_4h_to_h", "fc2", "w2"),
)


def every_scheme(name: str) -> Scheme:
    """Linears that share an input are alike, the groups of a block are not, and the next block has it otherwise."""
    block = next(int(part) for part in name.split(".") if part.isdigit())
    group = next(index for index, names in enumerate(GROUPS) if name.rpartition(".")[2] in names)
    return TURNS[(group + block) % len(TURNS)]


def mixed(source: Path, out: Path, choose: Choose = every_scheme, head: Head | None = None) -> Path:
    """Write a mixed folder with a label that says what it is."""
    anatomy = dissect(load(source))
    names = stored_names(anatomy, source)
    with checkpoint.Weights(source) as weights, new_folder(out) as part:
        dense = {names[name]: weights[f"{names[name]}.weight"] for name in anatomy.linears}
        schemes = {name: choose(name) for name in dense}
        made = {
            name: stored(magnitude(weight) if schemes[name] in TWO_OF_FOUR else weight, schemes[name], weight.dtype)
            for name, weight in dense.items()
        }
        checkpoint.write_model(part, source, made, "packed", head)
        shapes = {name: tuple(weight.shape) for name, weight in dense.items()}
        about: dict[str, Any] = {
            "format_version": MIXED_VERSION,
            "method": "magnitude",
            "linears": {name: {"shape": list(shapes[name])} for name in dense if schemes[name] in TWO_OF_FOUR},
            "dense": {name: "on purpose" for name in dense if schemes[name] not in TWO_OF_FOUR},
            "schemes": schemes,
            "shares": shares(schemes, shapes, anatomy.stored_dtype),
        }
        about |= {"lm_head": {"dtype": "int8", "scale_columns": dense_int8.RUN}} if head else {}
        checkpoint.write_manifest(part, about)
    return out
