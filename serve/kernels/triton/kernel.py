"""The Triton kernels behind a 2:4 linear: one copy of the values, read in place. Performance: not measured.

One opaque step for torch.compile. To capture CUDA graphs, call `prepare` of every linear when the kernels are chosen
and before the first capture: no launch in a capture may compile, and no scratch buffer may grow.
Calls on one device must follow each other on one stream: they share counters and scratch memory.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from twofour.prune.format.packed import Packed
from twofour.serve.kernels.triton import decode
from twofour.serve.kernels.triton.decode import TritonWeight


@dataclass(frozen=True)
class TritonKernel:
    """A 2:4 weight in the layout of the Triton kernels; more than `crossover_tokens` multiply by it expanded."""

    weight: TritonWeight
    crossover_tokens: int = decode.CROSSOVER_TOKENS
    name: ClassVar[str] = "triton"

    @classmethod
    def from_packed(cls, packed: Packed, crossover_tokens: int = decode.CROSSOVER_TOKENS) -> "TritonKernel":
        """Lay a weight out on its device. Raises InputError or CheckpointError for a weight that it cannot take."""
        return cls(TritonWeight.from_packed(packed), crossover_tokens)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def packed(self) -> Packed:
        """Return the weight as it is stored."""
        return self.weight.packed()

    def prepare(self, bias: Tensor | None) -> None:
        """Compile before a CUDA graph is captured what its calls may launch."""
        decode.prepare(self.weight, bias)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:  # [..., in] -> [..., out]
        return decode.linear(x, self.weight, bias, self.crossover_tokens)


def refusal(packed: Packed) -> str | None:
    """Say why the Triton kernels cannot take this weight, if they cannot."""
    available = decode.available()
    if available.startswith("none"):
        return f"no Triton kernel ({available.removeprefix('none: ')})"
    return decode.refuses(packed)
