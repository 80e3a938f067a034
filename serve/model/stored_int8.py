"""Dense weights in int8, lm_head and others: held as stored until a checkpoint is loaded, then multiplied by."""

from typing import Any

import torch
from torch import Tensor, nn

from twofour.prune.format import dense_int8, head
from twofour.prune.format.dense_int8 import RUN, DenseInt8
from twofour.serve.model.dense_int8 import Int8Linear

HEAD = head.NAMES[0]


class StoredInt8(nn.Module):
    """The stored tensors of a linear in int8, without values yet, in the place of a dense one."""

    int8_values: Tensor
    int8_scales: Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        rows, columns = linear.weight.shape
        self.bias = linear.bias
        self.register_buffer(dense_int8.VALUES, torch.empty(rows, columns, dtype=torch.int8, device="meta"))
        scales = torch.empty(rows, -(-columns // RUN), dtype=torch.float32, device="meta")
        self.register_buffer(dense_int8.SCALES, scales)

    def loaded(self, name: str, dtype: torch.dtype, kernels: str) -> Int8Linear:
        """Return the linear. dtype: of its activations. Raises CheckpointError if the stored tensors are corrupt."""
        packed = DenseInt8(self.int8_values, self.int8_scales)
        dense_int8.validate(packed, name)
        return Int8Linear.from_int8(packed, self.bias, dtype, kernels)


def expect(model: Any, name: str) -> None:
    """Make room for a linear in int8."""
    model.set_submodule(name, StoredInt8(model.get_submodule(name)))


def expect_head(model: Any) -> None:
    """Make room for lm_head in int8; it is not tied to the embeddings, now or when transformers ties weights again."""
    expect(model, HEAD)
    own = f"{HEAD}.weight"
    model._tied_weights_keys = {name: other for name, other in (model._tied_weights_keys or {}).items() if name != own}
    model.all_tied_weights_keys.pop(own, None)


def make_ready(model: Any, kernels: str = "auto") -> None:
    """Give each stored weight to its kernel."""
    for name, stored in list(model.named_modules()):
        if isinstance(stored, StoredInt8) and not stored.int8_values.is_meta:
            model.set_submodule(name, stored.loaded(name, model.dtype, kernels))
