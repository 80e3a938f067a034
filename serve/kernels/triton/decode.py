"""y = x W^T + bias on a GPU for few tokens, as the operator `twofour::linear24_triton`. Performance: not measured.

One opaque step for torch.compile; the number of tokens is looked at inside. Up to `crossover` tokens the decode
kernel multiplies by the packed weight, with one order of additions whatever the number of tokens; beyond, the
weight is expanded into a shared scratch buffer and multiplied by torch. Nothing waits for the device and addresses
stay, so calls can be captured in a CUDA graph once `prepare` has compiled what they launch.
With TRITON_INTERPRET=1 set before the first use, the same kernels run on CPU tensors, slowly, as a check.
"""

import importlib.util
import os

import torch
from torch import Tensor
from torch.nn import functional as F

from twofour.prune.errors import InputError
from twofour.serve.kernels.triton import plan, scratch
from twofour.serve.kernels.triton.layout import DTYPES, TritonWeight, aligned, padded, refuses, traits

__all__ = ["CROSSOVER_TOKENS", "TritonWeight", "available", "linear", "prepare", "refuses"]

# An H200 turns compute-bound near 103 tokens when it multiplies by all the weights and reads half of them: from
# there on the expansion no longer hides behind the memory. A model of its specification: not measured.
CROSSOVER_TOKENS = 96
_EXPAND_ROW_TILE = 32
_EXPAND_GROUP_TILE = 32

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

    # Up to 3.8, products into one sum after another are compiled wrongly for sm_10x (triton-lang/triton#10821).
    least = (3, 9) if major >= 10 else (3, 6)
    version = tuple(int(part) for part in triton.__version__.split(".")[:2])
    return "" if version >= least else f"none: triton {triton.__version__} is older than {least[0]}.{least[1]}"


def linear(
    x: Tensor, weight: TritonWeight, bias: Tensor | None = None, crossover: int = CROSSOVER_TOKENS
) -> Tensor:  # [..., columns] -> [..., rows]
    """Multiply by a weight in the kernel's layout."""
    return _op(x, weight.values, weight.codes, weight.arrivals, bias, weight.columns, weight.splits, crossover)


def prepare(weight: TritonWeight, bias: Tensor | None = None) -> None:
    """Compile whatever a call can launch and let the scratch grow, so that a graph captures launches alone.

    To be called before a CUDA graph is captured, once per shape, device and presence of a bias; it launches kernels.
    """
    for tokens in (1, 17, 33, plan.MAX_TOKENS + 1):
        linear(weight.values.new_zeros(tokens, weight.columns), weight, bias, plan.MAX_TOKENS)


def _linear(
    x: Tensor, values: Tensor, codes: Tensor, arrivals: Tensor, bias: Tensor | None,
    columns: int, splits: int, crossover: int,
) -> Tensor:  # fmt: skip
    _check(x, values, codes, arrivals, bias, columns, splits)
    flat = x.reshape(-1, columns)
    with torch.cuda.device_of(x):
        if not len(flat):
            y = x.new_empty(0, len(values))
        elif len(flat) <= min(crossover, plan.MAX_TOKENS):
            tile = plan.tile(len(flat), _capability(x.device))
            y = decode(flat, values, codes, arrivals, bias, splits, tile)
        else:
            y = _multiply_expanded(flat, values, codes, bias)
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
    room = arrivals.numel() >= plan.counters(rows) and splits >= 1
    if not (expected and kinds and room and values.is_contiguous() and codes.is_contiguous()):
        raise InputError("these tensors are no TritonWeight; make one by TritonWeight.from_packed")
    if bias is not None and (bias.shape != (rows,) or bias.dtype != x.dtype):
        raise InputError(f"the bias must be {x.dtype} [{rows}], got {bias.dtype} {list(bias.shape)}")
    if len({tensor.device for tensor in (x, values, codes, arrivals, x if bias is None else bias)}) > 1:
        raise InputError(f"the activations are on {x.device}, weight and bias elsewhere; move them together")


def _capability(device: torch.device) -> plan.Capability:
    if device.type != "cuda" and available() != "interpreter":
        raise InputError(f"the Triton kernels run on CUDA devices, got {device}; use the CPU kernels")
    return traits(device)[1]


def decode(
    x: Tensor, values: Tensor, codes: Tensor, arrivals: Tensor, bias: Tensor | None, splits: int, tile: plan.Tile
) -> Tensor:  # [tokens, columns] -> [tokens, rows]
    """Multiply by the kernel for few tokens, cut as `tile` says."""
    tokens, rows, quarter = len(x), len(values), codes.shape[1]
    from twofour.serve.kernels.triton import programs

    planes = tile.tokens > 16
    inputs = _planes(x, quarter, tile.groups, splits) if planes else aligned(_widened(x, 16 * quarter))
    y = x.new_empty(tokens, rows)
    partials = x.new_empty((splits, rows, tokens), dtype=torch.float32) if splits > 1 else None
    programs.decode[plan.grid(rows, tokens, splits, tile)](
        values, codes, inputs, None if bias is None else bias.contiguous(), y, partials,
        arrivals, tokens, OUTPUTS=rows, QUARTER=quarter, SPLITS=splits, ROW_TILE=tile.rows,
        GROUP_TILE=tile.groups, TOKEN_TILE=tile.tokens, PLANES=planes,
        PORTABLE=programs.INTERPRETED, num_warps=tile.warps, num_stages=tile.stages,
    )  # fmt: skip
    return y


def _planes(x: Tensor, quarter: int, groups: int, splits: int) -> Tensor:  # -> [tokens, steps, 4, 2, groups, 2]
    """Sort by step, quarter and half of a group: 16-byte copies where 4-byte ones were, all of a step side by side."""
    steps = plan.steps_of_a_split(quarter, groups, splits) * splits
    x = _widened(x, 16 * quarter).view(-1, 4, 4 * quarter)
    x = _widened(x, 4 * steps * groups).view(-1, 4, steps, groups, 2, 2)
    return aligned(x.permute(0, 2, 1, 4, 3, 5))


def _widened(x: Tensor, columns: int) -> Tensor:
    missing = columns - x.shape[-1]
    return F.pad(x, (0, missing)) if missing else x


def _multiply_expanded(x: Tensor, values: Tensor, codes: Tensor, bias: Tensor | None) -> Tensor:
    _capability(values.device)  # refuses a device without the kernels
    with scratch.borrowed(len(values), x.shape[1], values) as dense:
        expand(values, codes, dense)
        return F.linear(x, dense, bias)


def expand(values: Tensor, codes: Tensor, dense: Tensor) -> None:
    """Write the dense weight [rows, columns]."""
    from twofour.serve.kernels.triton import programs

    (rows, columns), quarter = dense.shape, codes.shape[1]
    programs.expand[-(-rows // _EXPAND_ROW_TILE), -(-quarter // _EXPAND_GROUP_TILE)](
        values, codes, dense, OUTPUTS=rows, COLUMNS=columns, QUARTER=quarter, ROW_TILE=_EXPAND_ROW_TILE,
        GROUP_TILE=_EXPAND_GROUP_TILE, PORTABLE=programs.INTERPRETED,
    )  # fmt: skip


def _fake(
    x: Tensor, values: Tensor, codes: Tensor, arrivals: Tensor, bias: Tensor | None,
    columns: int, splits: int, crossover: int,
) -> Tensor:  # fmt: skip
    return x.new_empty((*x.shape[:-1], values.shape[0]))


_library.impl("linear24_triton", _linear, "CompositeExplicitAutograd")
torch.library.register_fake("twofour::linear24_triton", _fake, lib=_library)
_op = torch.ops.twofour.linear24_triton.default
