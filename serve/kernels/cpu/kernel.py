"""The compiled CPU kernels behind a 2:4 linear."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from twofour.prune.format.packed import Packed
from twofour.serve.kernels import cpu
from twofour.serve.kernels.cpu import CpuWeight
from twofour.serve.kernels.cpu.ops import CROSSOVER_TOKENS
from twofour.serve.kernels.cpu.weight import SCALE_COLUMNS


@dataclass(frozen=True)
class CpuKernel:
    """A 2:4 weight in the device layout of the CPU kernels.

    More tokens than `crossover_tokens` go through dense panels, where int8 values are rounded to the dtype of x.
    """

    weight: CpuWeight
    crossover_tokens: int
    name: ClassVar[str] = "cpu"

    @classmethod
    def from_packed(cls, packed: Packed, crossover_tokens: int = CROSSOVER_TOKENS) -> "CpuKernel":
        return cls(CpuWeight.from_packed(packed), crossover_tokens)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def packed(self) -> Packed:
        """Return the weight as it is stored."""
        return self.weight.to_packed()

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:  # [..., in] -> [..., out]
        return multiply(x, self.weight, bias, self.crossover_tokens)

    def inside(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """The same within an operator, where torch's dispatcher has been passed already."""
        if x.dtype is torch.float16:
            return self(x, bias)
        return cpu.linear_inside(x, self.weight, bias, self.crossover_tokens)


def multiply(x: Tensor, weight: CpuWeight, bias: Tensor | None, crossover_tokens: int) -> Tensor:
    """x W^T + bias, [..., in] -> [..., out], in any dtype of activations."""
    if x.dtype is torch.float16:  # which the kernels do not know
        bias = None if bias is None else bias.float()
        return cpu.linear(x.float(), weight, bias, crossover_tokens).half()
    return cpu.linear(x, weight, bias, crossover_tokens)


def refusal(packed: Packed) -> str | None:
    """Say why the CPU kernels cannot take this weight, if they cannot."""
    available = cpu.available()
    if available.startswith("none"):
        return f"no CPU kernel ({available.removeprefix('none: ')})"
    if packed.values.dtype not in (torch.bfloat16, torch.int8):
        return f"the CPU kernels take bfloat16 or int8 values, not {packed.values.dtype}"
    if packed.scale_columns not in SCALE_COLUMNS:
        return f"the CPU kernels take a scale for each row or each 64 columns, not each {packed.scale_columns}"
    return None
