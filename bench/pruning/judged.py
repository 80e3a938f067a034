"""What is judged beside the runs of presets, and the bytes that the linears of each take.

Bytes are those that are stored in a folder, whatever a kernel makes of them: of int8 at load those of that format.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from twofour.bench.comparison.named import NamedArm
from twofour.bench.pruning.four_bit import four_bit_bytes, write_rounded
from twofour.prune.format.dense_int8 import int8_bytes
from twofour.prune.format.folder import read_config, resolve
from twofour.prune.format.weights import Weights
from twofour.prune.model.anatomy import dissect, stored_names
from twofour.prune.model.skeleton import skeleton
from twofour.serve.commands.rounding import DENSE_VALUES

SIMULATED = "simulated"  # a kind of arm, beside those of NamedArm
ITEM_BYTES = {"BF16": 2, "F16": 2, "F32": 4, "I8": 1, "U8": 1}  # by the names of safetensors


@dataclass(frozen=True)
class Dense:
    """The dense model, by the linears of its decoder blocks."""

    source: Path

    @cached_property
    def shapes(self) -> dict[str, tuple[int, int]]:
        return linears_of(self.source)

    @cached_property
    def linear_bytes(self) -> int:
        return self.bytes_of(self.source)

    def bytes_of(self, folder: Path, dense_int8: bool = False) -> int:
        """What is stored for these linears in a folder. dense_int8: those that are dense are rounded at load."""
        total = 0
        with Weights(folder) as tensors:
            for tensor in tensors:
                name, _, part = tensor.rpartition(".")
                if name in self.shapes and part != "bias":
                    shape = tensors.shape(tensor)
                    stored = shape[0] * shape[1] * ITEM_BYTES[tensors.dtype(tensor)]
                    total += int8_bytes(*shape) if dense_int8 and part == "weight" else stored
        return total

    @property
    def four_bit_bytes(self) -> int:
        return sum(four_bit_bytes(*shape) for shape in self.shapes.values())


@dataclass(frozen=True)
class Judged:
    """A folder, which may be made only when it is asked for. size: of its linears; None: as the folder stores them."""

    name: str
    kind: str
    folder: Callable[[], Path]
    rounding: tuple[str, ...] = ()
    size: int | None = None

    def about(self) -> dict[str, Any]:
        return {"name": self.name, "kind": self.kind, "flags": list(self.rounding)}

    def bytes_in(self, model: Dense) -> dict[str, int]:
        own = self.size or model.bytes_of(self.folder(), DENSE_VALUES in self.rounding)
        return {"linear_bytes": own, "dense_linear_bytes": model.linear_bytes}


def of_arm(arm: NamedArm) -> Judged:
    return Judged(arm.name, arm.kind, lambda: resolve(arm.model), tuple(arm.rounding))


def rivals(model: Dense, work: Path) -> Iterator[Judged]:
    """The dense model as it is, in int8, and in 4 bits, which is made in `work` and is simulated."""

    def four_bit() -> Path:
        out = work / f"{model.source.name}-4bit"
        if not out.exists():
            write_rounded(model.source, out, model.shapes)
        return out

    yield Judged("dense", "dense", lambda: model.source)
    yield Judged("dense int8", "dense", lambda: model.source, (DENSE_VALUES, "int8"))
    yield Judged("dense 4-bit", SIMULATED, four_bit, size=model.four_bit_bytes)


def linears_of(source: Path) -> dict[str, tuple[int, int]]:
    """The shapes of the linears of the decoder blocks, by the names they are stored under."""
    with Weights(source, "dense") as tensors:
        anatomy = dissect(skeleton(read_config(source), tensors))
    stored = stored_names(anatomy, source)
    return {stored[name]: (linear.out_features, linear.in_features) for name, linear in anatomy.linears.items()}
