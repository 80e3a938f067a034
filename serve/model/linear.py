"""A linear whose weight is 2:4.

Between construction and `prepare` it holds the stored tensors, `values`, `positions` and perhaps `scales`, as buffers:
a checkpoint is loaded into these. `prepare` gives them to a kernel, which has its own layout, and drops them, so that
there is one copy. What leaves the module (state_dict, save_pretrained, a move to another device or dtype) has the
stored form again. A move to another dtype casts float values and the bias; int8 values and their scales stay as they
are.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from twofour.prune.errors import CheckpointError
from twofour.prune.format.packed import Packed, scale_count, validate
from twofour.serve.kernels import select
from twofour.serve.kernels.select import Choice


class SparseLinear(nn.Module):
    """y = x W^T + bias for a packed W [out, in]. On the meta device it waits for its tensors; else it is ready."""

    values: Tensor | None
    positions: Tensor | None
    scales: Tensor | None

    def __init__(self, packed: Packed, bias: Tensor | None = None, kernels: str = "auto") -> None:
        super().__init__()
        self._dtype: torch.dtype | None = None
        self.out_features, self.in_features = packed.shape
        self.scale_columns = packed.scale_columns
        self.kernels = kernels
        self.choice: Choice | None = None
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)
        self._hold(packed)
        if not packed.values.is_meta:
            self.prepare(kernels)

    @classmethod
    def empty(cls, linear: nn.Linear, dtype: torch.dtype, scale_columns: int = 0) -> "SparseLinear":
        """A module without values in the place of a dense one; a checkpoint is then loaded into it."""
        out, columns = linear.weight.shape
        values = torch.empty(out, columns // 2, dtype=dtype, device="meta")
        positions = torch.empty(out, -(-columns // 8), dtype=torch.uint8, device="meta")
        scales = torch.empty(out, scale_count(columns, scale_columns), dtype=torch.float32, device="meta")
        return cls(Packed(values, positions, scales if dtype == torch.int8 else None, scale_columns), linear.bias)

    @property
    def kernel_bytes(self) -> int:
        """Resident bytes of the weight."""
        return self.packed().nbytes if self.choice is None else self.choice.nbytes

    def packed(self) -> Packed:
        """Return the weight as it is stored."""
        if self.values is not None and self.positions is not None:
            return Packed(self.values, self.positions, self.scales, self.scale_columns)
        assert self.choice is not None
        return self.choice.packed()

    def prepare(self, kernels: str, name: str = "weight", dtype: torch.dtype | None = None) -> None:
        """Give the weight to a kernel. Raises CheckpointError if the stored tensors are corrupt.

        `dtype`: of the activations, where it is known.
        """
        packed = self.packed()
        validate(packed, name)
        self.kernels, self._dtype, self.choice = kernels, dtype, select.choose(packed, kernels, dtype)
        self._probe = packed.values.new_empty(0, dtype=dtype if self.choice.rounded else None)
        self.values = self.positions = self.scales = None

    def forward(self, x: Tensor) -> Tensor:  # [..., in] -> [..., out]
        assert self.choice is not None
        return self.choice.kernel(x, self.bias)

    def extra_repr(self) -> str:
        kernel = "not loaded" if self.choice is None else self.choice.kernel.name
        return f"in_features={self.in_features}, out_features={self.out_features}, kernel={kernel}"

    def _hold(self, packed: Packed) -> None:
        self.register_buffer("values", packed.values)
        self.register_buffer("positions", packed.positions)
        self.register_buffer("scales", packed.scales)
        self.choice = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SparseLinear":
        ready = self.choice is not None
        if ready and self._stays(fn):
            super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
            return self
        self._hold(self.packed())
        scales, self.scales = self.scales, None
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if scales is not None:  # as integers, which a change of dtype does not touch
            self.scales = fn(scales.view(torch.int32)).view(torch.float32)
        if ready:
            self.prepare(self.kernels, dtype=self._dtype and fn(torch.empty(0, dtype=self._dtype)).dtype)
        return self

    def _stays(self, fn: Callable[[Tensor], Tensor]) -> bool:
        """Whether `fn` changes neither device nor dtype of these values, so that the layout of the kernel can stay."""
        moved = fn(self._probe)
        return moved.dtype == self._probe.dtype and moved.device == self._probe.device

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for part, tensor in self.packed().tensors().items():
            destination[f"{prefix}{part}"] = tensor

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        ready = self.choice is not None
        packed = self.packed()
        _require_same_kind(packed.values.dtype, state_dict.get(f"{prefix}values"), prefix)
        copies = {part: tensor.clone() for part, tensor in packed.tensors().items()}
        self._hold(Packed(**copies, scale_columns=packed.scale_columns))
        super()._load_from_state_dict(state_dict, prefix, *args)
        if ready:
            self.prepare(self.kernels, dtype=self._dtype)


def _require_same_kind(dtype: torch.dtype, values: Tensor | None, prefix: str) -> None:
    """Refuse to copy int8 over floats, or floats over int8: the numbers would mean something else."""
    if values is not None and values.dtype != dtype and torch.int8 in (values.dtype, dtype):
        raise CheckpointError(f"{prefix}values are {values.dtype}, this linear holds {dtype}; build it from the packed")
