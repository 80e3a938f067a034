"""lm_head in int8: held as it is stored while a checkpoint is loaded, then a linear that multiplies by it."""

from typing import Any

import torch
from torch import Tensor, nn

from twofour.prune.format import dense_int8, head
from twofour.prune.format.dense_int8 import RUN, DenseInt8
from twofour.serve.model.dense_int8 import Int8Linear

NAME = head.NAMES[0]


class StoredHead(nn.Module):
    """The stored tensors of lm_head, without values yet, in the place of a dense one."""

    int8_values: Tensor
    int8_scales: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        rows, columns = linear.weight.shape
        self.bias = linear.bias
        self.register_buffer(dense_int8.VALUES, torch.empty(rows, columns, dtype=torch.int8, device="meta"))
        self.register_buffer(
            dense_int8.SCALES, torch.empty(rows, -(-columns // RUN), dtype=torch.float32, device="meta")
        )

    def loaded(self, dtype: torch.dtype, kernels: str) -> Int8Linear:
        """Return the linear. dtype: of its activations. Raises CheckpointError if the stored tensors are corrupt."""
        packed = DenseInt8(self.int8_values, self.int8_scales)
        dense_int8.validate(packed, NAME)
        return Int8Linear.from_int8(packed, self.bias, dtype, kernels)


def expect(model: Any) -> None:
    """Make room for lm_head in int8; it is not tied to the embeddings, now or when transformers ties weights again."""
    model.set_submodule(NAME, StoredHead(model.get_submodule(NAME)))
    own = f"{NAME}.weight"
    model._tied_weights_keys = {name: other for name, other in (model._tied_weights_keys or {}).items() if name != own}
    model.all_tied_weights_keys.pop(own, None)


def make_ready(model: Any, kernels: str = "auto") -> None:
    """Give a stored lm_head to its kernel, if there is one in the model."""
    stored = model.get_submodule(NAME) if hasattr(model, NAME) else None
    if isinstance(stored, StoredHead) and not stored.int8_values.is_meta:
        model.set_submodule(NAME, stored.loaded(model.dtype, kernels))
