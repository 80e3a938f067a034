"""The reference kernel: expand to dense once, then torch's linear. Right on any device, and as fast as dense."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn import functional

from twofour.prune.packed import Packed, pack


@dataclass(frozen=True)
class ReferenceKernel:
    """A 2:4 weight as a dense one with zeros, [out, in]."""

    weight: Tensor
    name: ClassVar[str] = "reference"
    crossover_tokens: ClassVar[int] = 0

    @classmethod
    def from_packed(cls, packed: Packed) -> "ReferenceKernel":
        return cls(packed.unpack())

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def packed(self) -> Packed:
        """Return the weight as it is stored."""
        return pack(self.weight)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:  # [..., in] -> [..., out]
        return functional.linear(x, self.weight, bias)
