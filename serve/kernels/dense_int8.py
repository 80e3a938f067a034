"""A dense weight in int8 as the CPU kernels multiply by it: all numbers of tokens take one path."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from twofour.prune.format.dense_int8 import DenseInt8
from twofour.serve.kernels import cpu
from twofour.serve.kernels.cpu import CpuWeight
from twofour.serve.kernels.cpu.kernel import multiply
from twofour.serve.kernels.race import ALWAYS

KERNELS = ("auto", "cpu")  # other names pin kernels that take no dense weight


@dataclass(frozen=True)
class DenseInt8Kernel:
    weight: CpuWeight
    name: ClassVar[str] = "dense int8"

    @classmethod
    def from_int8(cls, packed: DenseInt8) -> "DenseInt8Kernel":
        return cls(CpuWeight.from_dense_int8(packed))

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def packed(self) -> DenseInt8:
        """Return the weight as it was rounded."""
        return self.weight.to_dense_int8()

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:  # [..., in] -> [..., out]
        return multiply(x, self.weight, bias, ALWAYS)


def takes(packed: DenseInt8, kernels: str) -> bool:
    """Whether the kernel may multiply by this weight and can."""
    return kernels in KERNELS and packed.values.is_cpu and not cpu.available().startswith("none")
