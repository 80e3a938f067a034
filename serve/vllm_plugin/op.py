"""`torch.ops.twofour.vllm_linear24`: the product with a 2:4 weight, as one opaque step of a compiled model.

Its arguments are those of any linear, so that the graphs of layers with equal shapes are equal and compiled once. Which
kernel multiplies is found inside, by the memory of the weight: a kernel is made when its weight is loaded, before
anything is captured, and how many tokens there are is looked at there, too.
"""

import weakref
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from vllm.utils.torch_utils import direct_register_custom_op

from twofour.prune.errors import ServerError


class Product(Protocol):
    """A weight in the layout of one kernel, a dataclass of tensors."""

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor: ...  # [..., in] -> [..., out]


_library = torch.library.Library("twofour", "FRAGMENT")
_kernels: dict[int, Product] = {}  # by the address of the first tensor of their weight


def tensors(held: Any) -> Iterator[Tensor]:
    """The tensors that a kernel holds, in a fixed order."""
    if isinstance(held, Tensor):
        yield held
    elif is_dataclass(held):
        for field in fields(held):
            yield from tensors(getattr(held, field.name))


def keep(kernel: Product, layer: nn.Module) -> None:
    """Let the operator find this kernel by its first tensor, as long as the layer lives."""
    address = next(tensors(kernel)).data_ptr()
    _kernels[address] = kernel
    weakref.finalize(layer, _forget, address, kernel)


def copied(kernel: Product, to: Product) -> Product:
    """Write a kernel's tensors over those of another of its kind, whose addresses graphs know. Returns `to`."""
    pairs = list(zip(tensors(to), tensors(kernel), strict=False))
    if type(kernel) is not type(to) or any(old.shape != new.shape for old, new in pairs):
        raise ServerError(f"weights of another kind cannot take the place of those of {to}; start vLLM anew")
    for old, new in pairs:
        old.copy_(new)
    return to


def _forget(address: int, kernel: Product) -> None:
    if _kernels.get(address) is kernel:
        del _kernels[address]


def _linear24(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out_features: int
) -> torch.Tensor:  # [..., in] -> [..., out]
    kernel = _kernels.get(weight.data_ptr())
    if kernel is None:
        raise ServerError("a 2:4 weight was moved after it was loaded, which its kernel does not know; start vLLM anew")
    return kernel(x, bias)


def _fake(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, out_features: int) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


direct_register_custom_op("vllm_linear24", _linear24, fake_impl=_fake, target_lib=_library)
linear24 = torch.ops.twofour.vllm_linear24
