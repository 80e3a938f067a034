"""The CPU kernels: 2:4 and dense linears in C++, AVX2 and AVX-512, chosen at run time.

In come a weight with bfloat16 or int8 values and activations in bfloat16 or float32; out come products. What they
refuse (float16 values or activations, other scales) raises InputError: the caller expands such a weight to dense. Read
`kernel` (what a linear calls), `weight` (its bytes, drawn in src/layout.h), `ops` (few tokens), `panels` (many),
`extension` (the compiled module, whose source is in src/). `step` computes a whole step of a model,
`attention` that of a layer, `sampling` finds the next tokens in logits.
"""

from twofour.serve.kernels.cpu.extension import loaded, missing
from twofour.serve.kernels.cpu.ops import dense_linear, linear, linear_inside
from twofour.serve.kernels.cpu.weight import CpuWeight, Kind

__all__ = ["CpuWeight", "Kind", "available", "dense_linear", "linear", "linear_inside"]


def available() -> str:
    """Say what would run: "avx512bf16", "avx512", "avx2", or "none: " and the reason."""
    cpu, reason = loaded(), missing()
    return f"none: {reason}" if cpu is None or reason else cpu.isa()
