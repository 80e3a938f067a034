"""cuSPARSELt behind a 2:4 linear, through torch's `_cslt_*` functions (Ampere and newer). Performance: not measured.

y = x W^T is computed as (W x^T)^T with `transpose_result`, so nothing is copied; x is padded to a multiple of eight
tokens. The compressed blob of torch is opaque: never stored, made at load from the dense weight, whose zeros are +0.0
(the compressor takes -0.0 for a value). One opaque step for torch.compile, the number of tokens looked at inside,
without a synchronisation: a captured graph keeps the algorithm that its number of tokens was given.

The default algorithm is rarely the best one, and how a sum is split matters at few tokens: `tuned` searches both,
per shape and number of tokens (search.py), and the result can be stored and given back by `with_tuning`.
"""

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from twofour.prune.errors import InputError
from twofour.prune.format.packed import Packed, pack
from twofour.serve.kernels.cusparselt.search import DEFAULT, Time, Tuning, graph_time_s, ring, search

ROWS = COLUMNS = 16  # the multiples that cuSPARSELt asks of a 16-bit weight, [out, in]
TOKENS = 8  # and of the other operand
REGRESSED = 800  # NVIDIA: slow on H100 and L4, mended in 0.8.1
BUCKETS = (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)  # tokens that a search is for
_IDENTITY_ROWS = 1024
_tunings: dict[tuple[tuple[int, int], torch.dtype, torch.device], Tuning | None] = {}

_library = torch.library.Library("twofour", "FRAGMENT")
_library.define(
    "linear24_cusparselt(Tensor x, Tensor blob, Tensor? bias, int rows, int columns, int[] algorithms) -> Tensor"
)


@dataclass(frozen=True)
class CusparseltKernel:
    """A 2:4 weight as cuSPARSELt's blob of values and metadata."""

    blob: Tensor
    rows: int
    columns: int
    tuning: Tuning | None = None  # None: the default algorithm
    crossover_tokens: int = 0  # of no effect: there is one path for any number of tokens
    name: ClassVar[str] = "cusparselt"

    @classmethod
    def from_packed(cls, packed: Packed) -> "CusparseltKernel":
        dense = packed.unpack()
        with torch.cuda.device_of(dense):
            return cls(torch._cslt_compress(dense.masked_fill_(dense == 0, 0.0)), *packed.shape)

    @property
    def nbytes(self) -> int:
        return self.blob.nbytes

    def tuned(self, buckets: tuple[int, ...], time_s: Time = graph_time_s) -> "CusparseltKernel":
        """Search algorithm and split for numbers of tokens, rounded up to multiples of eight. Launches and waits."""
        if not buckets or min(buckets) < 1:
            raise InputError(f"a search takes numbers of tokens from 1 on, got {list(buckets)}")
        padded = sorted({tokens + -tokens % TOKENS for tokens in buckets})
        with torch.cuda.device_of(self.blob):
            blobs = ring(self.blob)
            found = tuple((tokens, search(blobs, self.columns, tokens, time_s)) for tokens in padded)
        return replace(self, tuning=Tuning(version() or 0, found))

    def with_tuning(self, tuning: Tuning) -> "CusparseltKernel":
        """Use a stored result. Raises InputError if another version of cuSPARSELt found it."""
        if tuning.library_version != version():
            raise InputError(
                f"this tuning is of cuSPARSELt {tuning.library_version}, loaded is {version()}; search again"
            )
        return replace(self, tuning=tuning)

    def packed(self) -> Packed:
        """Return the weight as it is stored: the product with the identity is exact."""
        identity = torch.eye(self.columns, dtype=self.blob.dtype, device=self.blob.device)
        columns = [self(rows, None) for rows in identity.split(_IDENTITY_ROWS)]
        return pack(torch.cat(columns).t().contiguous())

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor:  # [..., in] -> [..., out]
        algorithms = [] if self.tuning is None else self.tuning.numbers
        return _op(x, self.blob, bias, self.rows, self.columns, algorithms)


def _linear(x: Tensor, blob: Tensor, bias: Tensor | None, rows: int, columns: int, algorithms: list[int]) -> Tensor:
    _check(x, blob, bias, rows, columns)
    flat = x.reshape(-1, columns)
    if not len(flat):
        return x.new_empty(*x.shape[:-1], rows)
    padded = functional.pad(flat, (0, 0, 0, -len(flat) % TOKENS)).contiguous()
    chosen = Tuning.from_numbers(0, algorithms).algorithm(len(padded)) if algorithms else DEFAULT
    with torch.cuda.device_of(blob):  # the library looks at the current device
        y: Tensor = torch._cslt_sparse_mm(blob, padded.t(), bias=bias, transpose_result=True, **vars(chosen))
    return y[: len(flat)].view(*x.shape[:-1], rows)


def _check(x: Tensor, blob: Tensor, bias: Tensor | None, rows: int, columns: int) -> None:
    if x.dtype != blob.dtype or not x.dim() or x.shape[-1] != columns:
        raise InputError(
            f"this weight takes {blob.dtype} of {columns} columns, got {x.dtype} {list(x.shape)}; "
            "convert the activations"
        )
    if bias is not None and (bias.shape != (rows,) or bias.dtype != x.dtype):
        raise InputError(f"the bias must be {x.dtype} [{rows}], got {bias.dtype} {list(bias.shape)}")
    if len({tensor.device for tensor in (x, blob, x if bias is None else bias)}) > 1:
        raise InputError(f"the activations are on {x.device}, weight or bias elsewhere; move them together")


def _fake(x: Tensor, blob: Tensor, bias: Tensor | None, rows: int, columns: int, algorithms: list[int]) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))


_library.impl("linear24_cusparselt", _linear, "CompositeExplicitAutograd")
torch.library.register_fake("twofour::linear24_cusparselt", _fake, lib=_library)
_op = torch.ops.twofour.linear24_cusparselt.default


def refusal(packed: Packed) -> str | None:
    """Say why cuSPARSELt cannot take this weight, if it cannot."""
    if packed.values.dtype not in (torch.bfloat16, torch.float16):
        return f"cuSPARSELt takes bfloat16 or float16 values, not {packed.values.dtype}"
    rows, columns = packed.shape
    if not rows or not columns or rows % ROWS or columns % COLUMNS:
        return f"cuSPARSELt takes multiples of {ROWS} x {COLUMNS}, not {rows} x {columns}"
    if not torch.backends.cusparselt.is_available():
        return "this torch has no cuSPARSELt"
    if packed.values.is_cuda and torch.cuda.get_device_capability(packed.values.device) < (8, 0):
        return "cuSPARSELt takes GPUs from sm_80 on"
    return None


def searched(packed: Packed, crossover_tokens: int = 0) -> CusparseltKernel:
    """Build a kernel with algorithms that are searched once for each shape in this process."""
    kernel = CusparseltKernel.from_packed(packed)
    key = (packed.shape, packed.values.dtype, packed.values.device)
    if key not in _tunings:
        _tunings[key] = kernel.tuned(BUCKETS).tuning
    return replace(kernel, tuning=_tunings[key])


def version() -> int | None:
    """Return the version of cuSPARSELt that torch has loaded, 801 for 0.8.1; None without one."""
    return torch.backends.cusparselt.version()


def warning() -> str | None:
    """Say what is known against the version of cuSPARSELt that torch has loaded."""
    if version() == REGRESSED:
        return "cuSPARSELt 0.8.0 is slow on some GPUs; a torch with 0.8.1 or newer is faster"
    return None
