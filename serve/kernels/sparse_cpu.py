"""The compiled CPU kernels behind a 2:4 linear."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from twofour.prune.packed import Packed, pack
from twofour.serve.kernels import cpu
from twofour.serve.kernels.cpu import CpuWeight
from twofour.serve.kernels.cpu.ops import CROSSOVER_TOKENS


@dataclass(frozen=True)
class CpuKernel:
    """A 2:4 weight in the device layout of the CPU kernels."""

    weight: CpuWeight
    crossover_tokens: int  # beyond, panels of rows are expanded
    name: ClassVar[str] = "cpu"

    @classmethod
    def from_packed(cls, packed: Packed, crossover_tokens: int = CROSSOVER_TOKENS) -> "CpuKernel":
        return cls(CpuWeight.from_packed(packed), crossover_tokens)

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def packed(self) -> Packed:
        """Return the weight as it is stored: the product with the identity is exact for bfloat16 values."""
        identity = torch.eye(self.weight.columns, dtype=torch.bfloat16)
        return pack(torch.cat([cpu.linear(rows, self.weight) for rows in identity.split(64)]).t().contiguous())

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:  # [..., in] -> [..., out]
        return cpu.linear(x, self.weight, bias, self.crossover_tokens)


def refusal(packed: Packed) -> str | None:
    """Say why the CPU kernels cannot take this weight, if they cannot."""
    available = cpu.available()
    if available.startswith("none"):
        return f"no CPU kernel ({available.removeprefix('none: ')})"
    if packed.values.dtype != torch.bfloat16:
        return f"the CPU kernels take bfloat16 values, not {packed.values.dtype}"
    return None
