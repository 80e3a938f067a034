"""y = x W^T + bias on a GPU for few tokens, as the operator `twofour::linear24_triton`. Performance: not measured.

One opaque step for torch.compile; the number of tokens is looked at inside. Up to `crossover` tokens the decode
kernel multiplies by the packed weight, with one order of additions whatever the number of tokens; beyond, the
weight is expanded into scratch memory and multiplied by torch. Nothing waits for the device, and all memory comes
from torch's allocator, so calls can be captured in a CUDA graph once `prepare` has compiled what they launch.
With TRITON_INTERPRET=1 set before the first use, the same kernels run on CPU tensors, slowly, as a check.
"""

import importlib.util
import os

import torch
from torch import Tensor
from torch.nn import functional as F

from twofour.prune.errors import InputError
from twofour.serve.kernels import triton_plan
from twofour.serve.kernels.triton_layout import DTYPES, TritonWeight, aligned, padded, refuses

__all__ = ["CROSSOVER_TOKENS", "TritonWeight", "available", "linear", "prepare", "refuses"]

CROSSOVER_TOKENS = 96  # where expanding twice as many weights as one reads stops being hidden; not measured
_EXPAND_ROW_TILE = 32

_library = torch.library.Library("twofour", "FRAGMENT")
_library.define(
    "linear24_triton(Tensor x, Tensor values, Tensor codes, Tensor arrivals, Tensor? bias, "
    "int columns, int splits, int crossover) -> Tensor"
)


def available() -> str:
    """Say what would run: "sm_90" or another target, "interpreter", or "none: " and the reason."""
    if importlib.util.find_spec("triton") is None:
        return "none: triton is not installed; pip install triton"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "interpreter"
    if not torch.cuda.is_available() or torch.version.hip:
        return "none: no CUDA device"
    major, minor = torch.cuda.get_device_capability()
    return _old_triton(major) or (f"sm_{major}{minor}" if major >= 8 else f"none: sm_{major}{minor} is before sm_80")


def _old_triton(major: int) -> str:
    import triton

    least = (3, 9) if major >= 10 else (3, 6)
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return "" if version >= least else f"none: triton {triton.__version__} is older than {least[0]}.{least[1]}"


def linear(
    x: Tensor, weight: TritonWeight, bias: Tensor | None = None, crossover: int = CROSSOVER_TOKENS
) -> Tensor:  # [..., columns] -> [..., rows]
    """Multiply by a weight in the kernel's layout."""
    return _op(x, weight.values, weight.codes, weight.arrivals, bias, weight.columns, weight.splits, crossover)


def prepare(weight: TritonWeight, bias: Tensor | None = None) -> None:
    """Compile whatever a call can launch, so that capturing a CUDA graph compiles nothing."""
    for tokens in (1, 17, 33, triton_plan.MAX_TOKENS + 1):
        linear(weight.values.new_zeros(tokens, weight.columns), weight, bias, triton_plan.MAX_TOKENS)


def _linear(
    x: Tensor, values: Tensor, codes: Tensor, arrivals: Tensor, bias: Tensor | None,
    columns: int, splits: int, crossover: int,
) -> Tensor:  # fmt: skip
    _check(x, values, codes, arrivals, bias, columns, splits)
    flat = x.reshape(-1, columns)
    with torch.cuda.device_of(x):
        if not len(flat):
            y = x.new_empty(0, len(values))
        elif len(flat) <= min(crossover, triton_plan.MAX_TOKENS):
            y = _decode(flat, values, codes, arrivals, bias, splits)
        else:
            y = F.linear(flat, _expand(values, codes, columns), bias)
    return y.view(*x.shape[:-1], len(values))


def _check(
    x: Tensor, values: Tensor, codes: Tensor, arrivals: Tensor, bias: Tensor | None, columns: int, splits: int
) -> None:
    """Refuse whatever could make a kernel read or write out of bounds, or read one dtype as another."""
    rows, quarter = len(values), padded(columns) // 16
    if x.dtype != values.dtype or not x.dim() or x.shape[-1] != columns:
        raise InputError(
            f"this weight takes {values.dtype} of {columns} columns, got {x.dtype} {list(x.shape)}; "
            "convert the activations"
        )
    expected = values.shape == (rows, 8 * quarter) and codes.shape == (rows, quarter)
    kinds = values.dtype in DTYPES and codes.dtype == torch.int16 and arrivals.dtype == torch.int32
    room = arrivals.numel() >= triton_plan.counters(rows) and splits >= 1
    if not (expected and kinds and room and values.is_contiguous() and codes.is_contiguous()):
        raise InputError("these tensors are no TritonWeight; make one by TritonWeight.from_packed")
    if bias is not None and (bias.shape != (rows,) or bias.dtype != x.dtype):
        raise InputError(f"the bias must be {x.dtype} [{rows}], got {bias.dtype} {list(bias.shape)}")
    if len({tensor.device for tensor in (x, values, codes, arrivals, x if bias is None else bias)}) > 1:
        raise InputError(f"the activations are on {x.device}, weight and bias elsewhere; move them together")


def _capability(device: torch.device) -> tuple[int, int]:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)
    if available() != "interpreter":
        raise InputError(f"the Triton kernels run on CUDA devices, got {device}; use the CPU kernels")
    return 9, 0


def _decode(
    x: Tensor, values: Tensor, codes: Tensor, arrivals: Tensor, bias: Tensor | None, splits: int
) -> Tensor:  # [tokens, columns] -> [tokens, rows]
    tokens, rows, quarter = len(x), len(values), codes.shape[1]
    tile = triton_plan.tile(tokens, _capability(x.device))
    from twofour.serve.kernels import triton_kernels

    planes = tile.tokens > 16
    y = x.new_empty(tokens, rows)
    partials = x.new_empty((splits, rows, tokens), dtype=torch.float32) if splits > 1 else None
    triton_kernels.decode[triton_plan.grid(rows, tokens, splits, tile)](
        values, codes, _inputs(x, quarter, planes), None if bias is None else bias.contiguous(), y, partials,
        arrivals, tokens, OUTPUTS=rows, QUARTER=quarter, SPLITS=splits, ROW_TILE=tile.rows,
        GROUP_TILE=triton_plan.GROUP_TILE, TOKEN_TILE=tile.tokens, PLANES=planes,
        PORTABLE=triton_kernels.INTERPRETED, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y


def _inputs(x: Tensor, quarter: int, planes: bool) -> Tensor:
    """Pad to whole quarters; with planes, sort by half of a group: 16-byte copies where 4-byte ones were."""
    if missing := 16 * quarter - x.shape[1]:
        x = F.pad(x, (0, missing))
    if planes:
        x = x.view(-1, 4, quarter, 2, 2).transpose(2, 3)
    return aligned(x)


def _expand(values: Tensor, codes: Tensor, columns: int) -> Tensor:  # -> [rows, columns]
    _capability(values.device)  # refuses a device without the kernels
    from twofour.serve.kernels import triton_kernels

    rows, quarter = codes.shape
    dense = values.new_empty(rows, columns)
    steps = -(-quarter // triton_plan.GROUP_TILE)
    triton_kernels.expand[-(-rows // _EXPAND_ROW_TILE), steps](
        values, codes, dense, OUTPUTS=rows, COLUMNS=columns, QUARTER=quarter, ROW_TILE=_EXPAND_ROW_TILE,
        GROUP_TILE=triton_plan.GROUP_TILE, PORTABLE=triton_kernels.INTERPRETED,
    )  # fmt: skip
    return dense


def _fake(
    x: Tensor, values: Tensor, codes: Tensor, arrivals: Tensor, bias: Tensor | None,
    columns: int, splits: int, crossover: int,
) -> Tensor:  # fmt: skip
    return x.new_empty((*x.shape[:-1], values.shape[0]))


_library.impl("linear24_triton", _linear, "CompositeExplicitAutograd")
torch.library.register_fake("twofour::linear24_triton", _fake, lib=_library)
_op = torch.ops.twofour.linear24_triton.default
