"""The reference kernel: expand to dense once, then torch's linear. Right on any device, and as fast as dense."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from twofour.prune.format.packed import Packed, pack


@dataclass
class ReferenceKernel:
    """A 2:4 weight as a dense one with zeros, [out, in].

    It takes the dtype of the first activations, rounded to nearest even; `stored` then keeps the weight that this
    replaces. int8 values begin as float32.
    """

    weight: Tensor
    stored: Packed | None = None
    name: ClassVar[str] = "reference"
    crossover_tokens: ClassVar[int] = 0

    @classmethod
    def from_packed(cls, packed: Packed) -> "ReferenceKernel":
        return cls(packed.unpack(), None if packed.scales is None else packed)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (0 if self.stored is None else self.stored.nbytes)

    def packed(self) -> Packed:
        """Return the weight as it is stored."""
        return pack(self.weight) if self.stored is None else self.stored

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:  # [..., in] -> [..., out]
        weight = self.weight if x.dtype == self.weight.dtype else self._cast(x.dtype)
        return functional.linear(x, weight, bias)

    def _cast(self, dtype: torch.dtype) -> Tensor:
        with torch.inference_mode(False):  # the tensors stay, and may be used outside of it later
            self.stored = self.packed()
            self.weight = weight = self.stored.unpack().to(dtype)
        return weight
