"""y = x W^T + bias on the CPU, as the operators `twofour::linear24_cpu` and `twofour::linear_dense_cpu`.

Operators of torch.library, so that torch.compile and inference mode treat them as one opaque step: tensors and
integers only, the number of tokens looked at inside. Up to `crossover` tokens the compiled kernel multiplies, with
one order of additions whatever the number of tokens, so that a token's result does not depend on what is beside it;
beyond, panels.py. x and y are bfloat16 or float32; int8 weights round x to 16 bits of the token's largest magnitude.
"""

import torch
from torch import Tensor

from twofour.prune.errors import InputError
from twofour.serve.kernels.cpu import panels
from twofour.serve.kernels.cpu.extension import loaded
from twofour.serve.kernels.cpu.weight import CpuWeight, Kind, require

CROSSOVER_TOKENS = 256
DTYPES = (torch.bfloat16, torch.float32)  # of x; the result has the same

_library = torch.library.Library("twofour", "FRAGMENT")
_library.define(
    "linear24_cpu(Tensor x, Tensor weight, Tensor? bias, int rows, int columns, int kind, int crossover) -> Tensor"
)
_library.define("linear_dense_cpu(Tensor x, Tensor weight, Tensor? bias, int rows, int columns) -> Tensor")
_cpu = loaded()
_DENSE, _FLOAT32, _KINDS = Kind.DENSE_BF16, torch.float32, frozenset(Kind)


def linear(
    x: Tensor, weight: CpuWeight, bias: Tensor | None = None, crossover: int = CROSSOVER_TOKENS
) -> Tensor:  # [..., columns] -> [..., rows]
    """Multiply by a weight in a device layout; dense weights always take the kernel."""
    if weight.kind is _DENSE:
        dense = _dense if _is_plain(x) else _dense_op
        return dense(x, weight.data, bias, weight.rows, weight.columns)
    sparse = _sparse if _is_plain(x) else _sparse_op
    return sparse(x, weight.data, bias, weight.rows, weight.columns, int(weight.kind), crossover)


def linear_inside(x: Tensor, weight: CpuWeight, bias: Tensor | None, crossover: int) -> Tensor:
    """The same by a 2:4 weight for plain tensors, as an operator of its own has them: no dispatcher is asked."""
    return _sparse(x, weight.data, bias, weight.rows, weight.columns, weight.kind, crossover)


def dense_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # [..., columns] -> [..., rows]
    """Multiply by a contiguous bfloat16 weight [rows, columns] where it lies; columns a multiple of 64."""
    rows, columns = weight.shape
    dense = _dense if _is_plain(x) else _dense_op
    return dense(x, weight.detach().view(torch.uint8), bias, rows, columns)


def _is_plain(x: Tensor) -> bool:
    """Eager, without gradients and modes: then torch's dispatcher, which takes 3 us, is not needed."""
    return not (
        torch.compiler.is_compiling()
        or type(x) is not Tensor
        or not x.is_cpu
        or torch.is_grad_enabled()
        or torch._C._len_torch_dispatch_stack()
    )


def _sparse(
    x: Tensor, weight: Tensor, bias: Tensor | None, rows: int, columns: int, kind: int, crossover: int
) -> Tensor:
    if x.numel() > crossover * columns and not require().is_forked():  # torch's threads do not survive a fork
        _check(x, weight, bias, rows, columns, kind)
        device = CpuWeight(weight, rows, columns, Kind(kind))
        return panels.linear(x.reshape(-1, columns), device, bias).view(*x.shape[:-1], rows)
    return _multiply(x, weight, bias, rows, columns, kind)


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None, rows: int, columns: int) -> Tensor:
    return _multiply(x, weight, bias, rows, columns, 3)


def _multiply(x: Tensor, weight: Tensor, bias: Tensor | None, rows: int, columns: int, kind: int) -> Tensor:
    _check(x, weight, bias, rows, columns, kind)
    x = x.contiguous()
    y = x.new_empty(x.size(0), rows) if x.dim() == 2 else x.new_empty((*x.shape[:-1], rows))
    outputs = y.numel()
    if outputs:
        (_cpu or require()).multiply(
            kind, weight.data_ptr(), x.data_ptr(), 0 if bias is None else bias.data_ptr(), y.data_ptr(),
            outputs // rows, rows, columns, x.dtype is _FLOAT32, torch.get_num_threads(),
        )  # fmt: skip
    return y


def _check(x: Tensor, weight: Tensor, bias: Tensor | None, rows: int, columns: int, kind: int) -> None:
    """Refuse whatever could make a kernel read or write out of bounds."""
    if x.dtype not in DTYPES or not x.dim() or x.size(-1) != columns:
        raise InputError(
            f"the CPU kernels take bfloat16 or float32 of {columns} columns, got {x.dtype} {list(x.shape)}; "
            "convert the activations, or expand this weight to dense"
        )
    known = rows >= 0 and columns >= 0 and kind in _KINDS
    expected = (_cpu or require()).layout_bytes(kind, rows, columns) if known else -1
    if weight.numel() != expected or weight.dtype is not torch.uint8 or not _is_readable(weight):
        raise InputError(
            f"a weight of kind {kind}, {rows} x {columns}, is {expected} contiguous bytes on the CPU, got "
            f"{weight.dtype} {list(weight.shape)}; build it with CpuWeight"
        )
    if bias is not None and (bias.dtype is not x.dtype or bias.shape != (rows,) or not _is_readable(bias)):
        raise InputError(
            f"the bias must be contiguous, on the CPU, {x.dtype} and [{rows}], got {bias.dtype} {list(bias.shape)}; "
            "convert it"
        )


def _is_readable(tensor: Tensor) -> bool:
    return tensor.is_cpu and tensor.is_contiguous()


def _sparse_fake(
    x: Tensor, weight: Tensor, bias: Tensor | None, rows: int, columns: int, kind: int, crossover: int
) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))


def _dense_fake(x: Tensor, weight: Tensor, bias: Tensor | None, rows: int, columns: int) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows))


_library.impl("linear24_cpu", _sparse, "CPU")
_library.impl("linear_dense_cpu", _dense, "CPU")
torch.library.register_fake("twofour::linear24_cpu", _sparse_fake, lib=_library)
torch.library.register_fake("twofour::linear_dense_cpu", _dense_fake, lib=_library)
_sparse_op = torch.ops.twofour.linear24_cpu.default
_dense_op = torch.ops.twofour.linear_dense_cpu.default
