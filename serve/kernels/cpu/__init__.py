"""The CPU kernels: 2:4 and dense linears in C++, AVX2 and AVX-512, chosen at run time.

They take bfloat16 and int8 values, bfloat16 and float32 activations. What they refuse (float16 values or
activations, other scales) raises InputError: the caller expands such a weight to dense.
"""

from twofour.serve.kernels.cpu.extension import loaded, missing
from twofour.serve.kernels.cpu.ops import dense_linear, linear
from twofour.serve.kernels.cpu.weight import CpuWeight, Kind

__all__ = ["CpuWeight", "Kind", "available", "dense_linear", "linear"]


def available() -> str:
    """Say what would run: "avx512bf16", "avx512", "avx2", or "none: " and the reason."""
    cpu, reason = loaded(), missing()
    return f"none: {reason}" if cpu is None or reason else cpu.isa()
