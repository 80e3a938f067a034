"""A linear whose weight is dense and rounded to int8, with a scale for each 64 columns of a row.

On a CPU a kernel multiplies by the int8 values. Where none can, the weight is expanded to the dtype of the activations:
the same product but for rounding, with nothing gained.
"""

import logging
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from twofour.prune.errors import InputError
from twofour.prune.format.dense_int8 import SCALES, VALUES, DenseInt8, to_dense_int8
from twofour.serve.kernels.dense_int8 import DenseInt8Kernel, takes

INT8 = "int8"

log = logging.getLogger(__name__)


class Int8Linear(nn.Module):
    """y = x W^T + bias for a rounded W [out, in]. `at_load`: the checkpoint holds it as it was."""

    weight: Tensor | None

    def __init__(
        self, packed: DenseInt8, bias: Tensor | None, dtype: torch.dtype, kernels: str = "auto", at_load: bool = False
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.values.shape
        self.dtype, self.at_load = dtype, at_load
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.kernel = DenseInt8Kernel.from_int8(packed) if takes(packed, kernels) else None
        self.register_buffer("weight", None if self.kernel else packed.unpack().to(dtype), persistent=False)
        self._stored = None if self.kernel or at_load else packed  # which the expanded weight does not tell

    @classmethod
    def from_linear(cls, linear: nn.Linear, name: str = "weight", kernels: str = "auto") -> "Int8Linear":
        """Round the weight of a linear. Raises NonFiniteError, naming it."""
        weight = linear.weight.detach()
        return cls(to_dense_int8(weight, name), linear.bias, weight.dtype, kernels, at_load=True)

    @classmethod
    def from_int8(
        cls, packed: DenseInt8, bias: Tensor | None, dtype: torch.dtype, kernels: str = "auto"
    ) -> "Int8Linear":
        """`dtype`: of the activations."""
        return cls(packed, bias, dtype, kernels)

    @property
    def nbytes(self) -> int:
        """Resident bytes of the weight."""
        if self.weight is not None:
            return self.weight.nbytes
        assert self.kernel is not None
        return self.kernel.nbytes

    def forward(self, x: Tensor) -> Tensor:  # [..., in] -> [..., out]
        if self.kernel is not None:
            return self.kernel(x, self.bias)
        assert self.weight is not None
        return functional.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Int8Linear":
        """The kernel stays with a move to another dtype, and not with one to another device."""
        probe = fn(torch.empty(0, dtype=self.dtype))
        if self.kernel is not None and not probe.is_cpu:
            packed = self.kernel.packed()
            self.weight, self.kernel = packed.unpack().to(self.dtype), None
            self._stored = None if self.at_load else packed
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.dtype = probe.dtype
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """What comes of a checkpoint leaves as it was there; what was rounded at load was never stored so."""
        if self.at_load:
            raise InputError(f"{prefix}weight was rounded to int8 at load, and is not saved; load it without that")
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if packed := self._stored if self.kernel is None else self.kernel.packed():
            destination[f"{prefix}{VALUES}"], destination[f"{prefix}{SCALES}"] = packed.values, packed.scales


def lm_head_of(model: nn.Module) -> nn.Module | None:
    """The head, if the model has one."""
    found: nn.Module | None = getattr(model, "get_output_embeddings", lambda: None)()
    return found


def int8_linears(model: nn.Module) -> Iterator[tuple[str, Int8Linear]]:
    """The dense linears of a model in int8, by name."""
    return ((name, module) for name, module in model.named_modules() if isinstance(module, Int8Linear))


def round_linears(model: Any, lm_head: str | None, dense_values: str | None, kernels: str) -> None:
    """Round lm_head, and the other linears that are dense, where int8 is asked for. Embeddings stay as they are."""
    head = lm_head_of(model)
    if lm_head and not isinstance(head, nn.Linear | Int8Linear):
        raise InputError(f"{type(model).__name__} has no lm_head that could be int8; leave that away")
    wanted = [
        (name, linear)
        for name, linear in model.named_modules()
        if type(linear) is nn.Linear and (lm_head if linear is head else dense_values)
    ]
    for name, linear in wanted:
        model.set_submodule(name, Int8Linear.from_linear(linear, name, kernels))
    if lm_head or dense_values:
        log.info("rounded %d dense linears to int8", len(wanted))


def require_known(lm_head: str | None, dense_values: str | None, device: torch.device) -> None:
    """Raise InputError for what cannot be asked for."""
    for name, value in {"lm_head": lm_head, "dense_values": dense_values}.items():
        if value not in (None, INT8):
            raise InputError(f"{name} is {value!r}; it can be {INT8}, or left away")
        if value and device.type != "cpu":
            raise InputError(
                f"{name} {INT8} is built for CPUs, not for {device}; choose --device cpu, or leave it away"
            )


def notes(model: Any) -> Iterator[str]:
    """What a user must know of them."""
    head, linears = lm_head_of(model), [linear for _, linear in int8_linears(model)]
    others = [linear.at_load for linear in linears if linear is not head]
    if isinstance(head, Int8Linear):
        yield (
            "lm_head is rounded to int8 at load, as asked for" if head.at_load else "lm_head is int8 in the checkpoint"
        )
    if at_load := sum(others):
        yield f"{at_load} dense linears are rounded to int8 at load, as asked for"
    if stored := len(others) - at_load:
        yield f"{stored} dense linears are int8 in the checkpoint"
    if expanded := sum(linear.kernel is None for linear in linears):
        yield f"{expanded} dense linears in int8 are expanded: they take as much memory and time as {model.dtype}"
