"""A pruned block trained to return what the dense model has at its place.

It is given what the pruned blocks before it make of the text, so it also makes up for them. The loss of a token is its
squared error relative to the square of the dense output: a few tokens with huge states do not drown the others, and
the next block normalises anyway. Memory is that of one block and one more copy of the hidden states.
"""

import torch
from torch import Tensor

from twofour.prune.model.anatomy import Block
from twofour.prune.model.batches import Batch, run_block
from twofour.prune.recovery.kept import KeptWeights
from twofour.prune.recovery.optimiser import Rounding
from twofour.prune.recovery.training import Loss, Outcome, train

BLOCK_RATE = 0.01


def recover_block(
    block: Block,
    index: int,
    batches: list[Batch],
    stored_dtype: torch.dtype,
    passes: int,
    seed: int,
    rounding: Rounding | None = None,
) -> Outcome:
    """Train the kept weights of a pruned block so that it returns the dense model's states at its place."""
    kept = KeptWeights(block.linears.values(), stored_dtype, BLOCK_RATE, rounding)
    return train(kept, block_loss(block, index, batches), len(batches), passes, seed, f"training block {index}")


def block_loss(block: Block, index: int, batches: list[Batch]) -> Loss:
    """Return the relative error of a block's outputs on a batch, by the number of the batch."""

    def loss(part: int) -> Tensor:
        batch = batches[part]
        assert batch.dense is not None, "the walk follows the dense model where blocks are recovered"
        found = run_block(block, index, batch.hidden, batch)
        return relative_error(found, batch.dense.to(found.device))

    return loss


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:  # [..., width] twice -> []
    """The squared error of every token relative to the square of what is wanted; the mean over tokens."""
    wanted = wanted.float()
    squares = wanted.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return ((found.float() - wanted).square().sum(-1) / squares).mean()
