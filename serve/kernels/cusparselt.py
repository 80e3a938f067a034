"""cuSPARSELt behind a 2:4 linear, through torch's `_cslt_*` functions (Ampere and newer).

y = x W^T is computed as (W x^T)^T with `transpose_result`, so nothing is copied; x is padded to a multiple of eight
tokens. The compressed blob of torch is opaque: never stored, made at load from the dense weight, whose zeros are +0.0
(the compressor takes -0.0 for a value).
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from twofour.prune.packed import Packed, pack

ROWS = COLUMNS = 16  # the multiples that cuSPARSELt asks of a 16-bit weight, [out, in]
TOKENS = 8  # and of the other operand
REGRESSED = 800  # NVIDIA: slow on H100 and L4, mended in 0.8.1


@dataclass(frozen=True)
class CusparseltKernel:
    """A 2:4 weight as cuSPARSELt's blob of values and metadata."""

    blob: Tensor
    columns: int
    crossover_tokens: int
    name: ClassVar[str] = "cusparselt"

    @classmethod
    def from_packed(cls, packed: Packed, crossover_tokens: int = 0) -> "CusparseltKernel":
        return cls(torch._cslt_compress(packed.unpack()), packed.shape[1], crossover_tokens)

    @property
    def nbytes(self) -> int:
        return self.blob.nbytes

    def packed(self) -> Packed:
        """Return the weight as it is stored: the product with the identity is exact."""
        identity = torch.eye(self.columns, dtype=self.blob.dtype, device=self.blob.device)
        return pack(self(identity, None).t().contiguous())

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:  # [..., in] -> [..., out]
        rows = x.reshape(-1, self.columns)
        padded = functional.pad(rows, (0, 0, 0, -len(rows) % TOKENS)).contiguous()
        y: Tensor = torch._cslt_sparse_mm(self.blob, padded.t(), bias=bias, transpose_result=True)
        return y[: len(rows)].reshape(*x.shape[:-1], y.shape[-1])


def refusal(packed: Packed) -> str | None:
    """Say why cuSPARSELt cannot take this weight, if it cannot."""
    if packed.values.dtype not in (torch.bfloat16, torch.float16):
        return f"cuSPARSELt takes bfloat16 or float16 values, not {packed.values.dtype}"
    rows, columns = packed.shape
    if rows % ROWS or columns % COLUMNS:
        return f"cuSPARSELt takes multiples of {ROWS} x {COLUMNS}, not {rows} x {columns}"
    if not torch.backends.cusparselt.is_available():
        return "this torch has no cuSPARSELt"
    return None


def warning() -> str | None:
    """Say what is known against the version of cuSPARSELt that torch has loaded."""
    if torch.backends.cusparselt.version() == REGRESSED:
        return "cuSPARSELt 0.8.0 is slow on some GPUs; a torch with 0.8.1 or newer is faster"
    return None
