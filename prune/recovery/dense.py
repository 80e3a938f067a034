"""The dense weights of the linears beside the pruned ones, to be put in place for a while: the teacher of a stream.

All else is the same in both models and in memory once. Where a GPU has no room for the dense weights they wait in the
memory of the host, and the pruned ones take their place there while they are used.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from twofour.prune.model.anatomy import Anatomy
from twofour.prune.model.batches import BATCH_TOKENS, states_behind


class DenseWeights:
    """weights: of each linear of the model, by name, where they wait."""

    def __init__(self, anatomy: Anatomy, weights: Mapping[str, Tensor]) -> None:
        self._anatomy, self._weights = anatomy, weights

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Make the pruned model the dense one; it is the pruned one again afterwards, to the bit."""
        pruned = {name: linear.weight.data for name, linear in self._anatomy.linears.items()}
        device = self._anatomy.device
        try:
            for name, linear in self._anatomy.linears.items():
                waiting = self._weights[name]
                pruned[name] = pruned[name].to(waiting.device)
                linear.weight.data = waiting.to(device)
            yield
        finally:
            for name, linear in self._anatomy.linears.items():
                linear.weight.data = pruned[name].to(device)


@torch.no_grad()
def states(anatomy: Anatomy, ids: Tensor) -> Tensor:  # int64 [samples, length] -> [samples, length, width]
    """Return what comes out of the last block of the model as it is, in the memory of the host: large batches."""
    size = max(1, BATCH_TOKENS // ids.shape[1])
    return torch.cat([states_behind(anatomy, some.to(anatomy.device)).cpu() for some in ids.split(size)])
