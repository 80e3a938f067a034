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
from twofour.serve.kernels.cpu.extension import Extension
from twofour.serve.kernels.cpu.weight import CpuWeight, Kind, require

CROSSOVER_TOKENS = 128
DTYPES = (torch.bfloat16, torch.float32)  # of x; the result has the same

_library = torch.library.Library("twofour", "FRAGMENT")
_library.define(
    "linear24_cpu(Tensor x, Tensor weight, Tensor? bias, int rows, int columns, int kind, int crossover) -> Tensor"
)
_library.define("linear_dense_cpu(Tensor x, Tensor weight, Tensor? bias, int rows, int columns) -> Tensor")
_DENSE = int(Kind.DENSE_BF16)
_KINDS = frozenset(int(kind) for kind in Kind)


def linear(
    x: Tensor, weight: CpuWeight, bias: Tensor | None = None, crossover: int = CROSSOVER_TOKENS
) -> Tensor:  # [..., columns] -> [..., rows]
    """Multiply by a weight in a device layout; dense weights always take the kernel."""
    if weight.kind == Kind.DENSE_BF16:
        return _dense_op(x, weight.data, bias, weight.rows, weight.columns)
    return _sparse_op(x, weight.data, bias, weight.rows, weight.columns, int(weight.kind), crossover)


def _sparse(
    x: Tensor, weight: Tensor, bias: Tensor | None, rows: int, columns: int, kind: int, crossover: int
) -> Tensor:
    cpu = require()
    _check(cpu, x, weight, bias, rows, columns, kind)
    if x.numel() <= crossover * columns or cpu.is_forked():  # torch's threads would wait for ever after a fork
        return _multiply(cpu, x, weight, bias, rows, columns, kind)
    device = CpuWeight(weight, rows, columns, Kind(kind))
    return panels.linear(x.reshape(-1, columns), device, bias).view(*x.shape[:-1], rows)


def _dense(x: Tensor, weight: Tensor, bias: Tensor | None, rows: int, columns: int) -> Tensor:
    cpu = require()
    _check(cpu, x, weight, bias, rows, columns, _DENSE)
    return _multiply(cpu, x, weight, bias, rows, columns, _DENSE)


def _multiply(
    cpu: Extension, x: Tensor, weight: Tensor, bias: Tensor | None, rows: int, columns: int, kind: int
) -> Tensor:
    x = x.contiguous()
    y = x.new_empty((*x.shape[:-1], rows))
    outputs = y.numel()
    if outputs:
        cpu.multiply(
            kind, weight.data_ptr(), x.data_ptr(), 0 if bias is None else bias.data_ptr(), y.data_ptr(),
            outputs // rows, rows, columns, x.dtype is torch.float32, torch.get_num_threads(),
        )  # fmt: skip
    return y


def _check(cpu: Extension, x: Tensor, weight: Tensor, bias: Tensor | None, rows: int, columns: int, kind: int) -> None:
    """Refuse whatever could make a kernel read or write out of bounds."""
    if x.dtype not in DTYPES or not x.dim() or x.shape[-1] != columns:
        raise InputError(
            f"the CPU kernels take bfloat16 or float32 of {columns} columns, got {x.dtype} {list(x.shape)}; "
            "convert the activations, or expand this weight to dense"
        )
    expected = cpu.layout_bytes(kind, rows, columns) if rows >= 0 and kind in _KINDS else -1
    if weight.dtype != torch.uint8 or weight.numel() != expected or not weight.is_contiguous():
        raise InputError(
            f"a weight of kind {kind}, {rows} x {columns}, is {expected} contiguous bytes, got {weight.dtype} "
            f"{list(weight.shape)}; build it with CpuWeight"
        )
    if bias is not None and (bias.dtype != x.dtype or bias.shape != (rows,) or not bias.is_contiguous()):
        raise InputError(
            f"the bias must be contiguous, {x.dtype} and [{rows}], got {bias.dtype} {list(bias.shape)}; convert it"
        )


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
