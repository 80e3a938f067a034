"""A dense bfloat16 linear on the CPU: few tokens by our own kernel, more by torch's.

With few tokens torch's bfloat16 product reads a weight at less than half of the memory bandwidth. Ours is used for
lm_head, for every linear of a dense model, and for a 2:4 linear that is faster dense.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from twofour.prune.format.packed import Packed, pack
from twofour.serve.kernels import cpu

COLUMNS = 64  # our kernel reads a weight in place if its columns are a multiple of these


def multiply(x: Tensor, weight: Tensor, bias: Tensor | None, crossover_tokens: int) -> Tensor:
    """x W^T + bias, [..., in] -> [..., out]; up to `crossover_tokens` tokens by our kernel, if it can."""
    columns = weight.shape[1]
    is_ours = weight.is_cpu and weight.dtype == x.dtype == torch.bfloat16 and columns % COLUMNS == 0
    if is_ours and x.numel() <= crossover_tokens * columns:
        return cpu.dense_linear(x, weight, bias)
    return functional.linear(x, weight, bias)


def takes(weight: Tensor) -> bool:
    """Whether our kernel can multiply by this weight [out, in] where it lies."""
    fits = weight.dim() == 2 and weight.shape[1] % COLUMNS == 0 and weight.is_contiguous()
    return fits and weight.is_cpu and weight.dtype == torch.bfloat16 and not cpu.available().startswith("none")


@dataclass(frozen=True)
class DenseKernel:
    """A 2:4 weight as a dense one with zeros, [out, in], because dense is faster."""

    weight: Tensor
    stored: Packed | None  # int8 values and their scales, which cannot be had from the dense weight
    crossover_tokens: int
    name: ClassVar[str] = "dense"

    @classmethod
    def from_packed(cls, packed: Packed, crossover_tokens: int, dtype: torch.dtype = torch.bfloat16) -> "DenseKernel":
        """int8 values become `dtype`, that of the activations; others stay."""
        is_int8 = packed.scales is not None
        weight = packed.unpack().to(dtype) if is_int8 else packed.unpack()
        return cls(weight, packed if is_int8 else None, crossover_tokens)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes + (self.stored.nbytes if self.stored else 0)

    def packed(self) -> Packed:
        """Return the weight as it is stored."""
        return self.stored or pack(self.weight)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:  # [..., in] -> [..., out]
        return multiply(x, self.weight, bias, self.crossover_tokens)


class DenseLinear(nn.Linear):
    """An nn.Linear, parameters shared with the one it replaces, that multiplies few tokens by our kernel."""

    def __init__(self, linear: nn.Linear, crossover_tokens: int) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.crossover_tokens = crossover_tokens

    def forward(self, x: Tensor) -> Tensor:  # [..., in] -> [..., out]
        return multiply(x, self.weight, self.bias, self.crossover_tokens)
