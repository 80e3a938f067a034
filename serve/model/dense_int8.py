"""A linear whose weight is dense and rounded to int8, with a scale for each 64 columns of a row."""

import torch
from torch import Tensor, nn
from torch.nn import functional

from twofour.prune.format.dense_int8 import DenseInt8, to_dense_int8


class Int8Linear(nn.Module):
    """y = x W^T + bias for a rounded W [out, in]."""

    weight: Tensor

    def __init__(self, packed: DenseInt8, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.values.shape
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self.register_buffer("weight", packed.unpack().to(dtype), persistent=False)

    @classmethod
    def from_linear(cls, linear: nn.Linear, name: str = "weight") -> "Int8Linear":
        """Round the weight of a linear. Raises NonFiniteError, naming it."""
        weight = linear.weight.detach()
        return cls(to_dense_int8(weight, name), linear.bias, weight.dtype)

    @classmethod
    def from_int8(cls, packed: DenseInt8, bias: Tensor | None, dtype: torch.dtype) -> "Int8Linear":
        """`dtype`: of the activations."""
        return cls(packed, bias, dtype)

    def forward(self, x: Tensor) -> Tensor:  # [..., in] -> [..., out]
        return functional.linear(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}"
