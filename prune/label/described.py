"""A pruned folder taken apart: what config.json and the label say of its linears, and each of them read."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from twofour.prune.errors import CheckpointError
from twofour.prune.format import checkpoint
from twofour.prune.format.packed import Packed
from twofour.prune.format.quantization import Kind, stated
from twofour.prune.format.schemes import Scheme
from twofour.prune.format.weights import Weights
from twofour.prune.model import experts
from twofour.prune.model.anatomy import Anatomy, dissect
from twofour.prune.model.skeleton import misfits, skeleton


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

    @cached_property
    def kinds(self) -> dict[str, Kind]:
        """What the linears of a packed form are stored as, by config.json."""
        return stated(self.config["quantization_config"], self.expected)

    @cached_property
    def schemes(self) -> dict[str, Scheme]:
        """How the linears of the decoder blocks are stored, by config.json; of a dense form, by the label."""
        if self.weights.form == "packed":
            return {name: kind.scheme for name, kind in self.kinds.items()}
        dense = set(self.dense)
        return {name: "dense" if name in dense else "2:4" for name in self.expected}

    @property
    def in_int8(self) -> list[str]:
        """The dense linears that config.json calls int8, be they in the decoder blocks or not."""
        schemes = (self.config.get("quantization_config") or {}).get("schemes") or {}
        return list(schemes.get("dense-int8", ()))


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


def read_packed(weights: Weights, name: str, kind: Kind) -> Packed:
    """Read the stored tensors of one linear. Raises CheckpointError where one is missing or of another dtype."""
    for part in ("values", "positions"):
        if f"{name}.{part}" not in weights:
            raise CheckpointError(f"{name}.{part} is missing; take an intact copy of the model")
    if f"{name}.weight" in weights:
        raise CheckpointError(f"{name} is stored twice, packed and as {name}.weight; take an intact copy of the model")
    values = weights[f"{name}.values"]
    if (found := checkpoint.dtype_name(values.dtype)) != kind.dtype:
        raise CheckpointError(f"{name} has {found} values, config.json says {kind.dtype}; take an intact copy")
    return Packed(values, weights[f"{name}.positions"], weights.get(f"{name}.scales"), kind.scale_columns)
