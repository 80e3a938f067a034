"""Recovery: what 2:4 lost, won back by training the kept weights against the dense model, masks fixed.

Block by block, inside the walk: a pruned block is given what the pruned blocks before it make of the text, and learns
to return what the dense model has at that place, so it also makes up for the blocks before. The loss of a token is its
squared error relative to the square of the dense output: a few tokens with huge states do not drown the others, and
the next block normalises anyway. Memory is that of one block and one more copy of the hidden states.

Then the whole model: the divergence KL(dense || pruned) of the next-token probabilities, over the same text. Both
models are in memory, and the optimiser with 12 bytes a kept weight.

Only kept weights of pruned linears learn. A norm's gain in front of a linear only scales its columns, which kept
weights can do themselves; everything outside the linears stays to the bit.
"""

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from twofour.prune.anatomy import Anatomy, Block
from twofour.prune.batches import Batch, run_block
from twofour.prune.kept import KeptWeights, Outcome, train
from twofour.prune.progress import Progress, silent

STEP_TOKENS = 512  # one step of the optimiser sees about this many
BLOCK_RATE, MODEL_RATE = 0.01, 0.003
CHUNK_BYTES = 64 << 20  # float32 [tokens, vocabulary] at a time


@dataclass(frozen=True)
class Recovery:
    """What training won back, for the manifest: one outcome a block, and that of the whole model."""

    blocks: list[Outcome]
    model: Outcome | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with what the losses mean."""
        return {
            "block_loss": "squared error of the block outputs relative to the dense, mean over held-out tokens",
            "model_loss": "KL(dense || pruned) in nats per token, mean over held-out tokens",
            **asdict(self),
        }


def step_tokens(ids: Tensor) -> int:  # int64 [samples, length]
    """Return how many tokens one step sees: fewer where a text is so short that none would be left to validate."""
    return min(STEP_TOKENS, ids.numel() // 2)


def recover_block(
    block: Block, index: int, batches: list[Batch], stored: torch.dtype, passes: int, seed: int
) -> Outcome:
    """Train the kept weights of a pruned block so that it returns the dense model's states at its place."""

    def loss(part: int) -> Tensor:
        batch = batches[part]
        assert batch.dense is not None, "the walk follows the dense model where blocks are recovered"
        return relative_error(run_block(block, index, batch.hidden, batch), batch.dense)

    kept = KeptWeights(block.linears.values(), stored, BLOCK_RATE)
    return train(kept, loss, len(batches), passes, seed)


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:  # [..., width] twice -> []
    """The squared error of every token relative to the square of what is wanted; the mean over tokens."""
    wanted = wanted.float()
    squares = wanted.square().sum(-1).clamp_min(torch.finfo(torch.float32).tiny)
    return ((found.float() - wanted).square().sum(-1) / squares).mean()


def distil(
    pruned: Anatomy, dense: nn.Module, ids: Tensor, passes: int, seed: int, progress: Progress = silent
) -> Outcome:
    """Train all kept weights so that the pruned model predicts what the dense model predicts on the text `ids`."""
    batches = ids.split(max(1, step_tokens(ids) // ids.shape[1]))

    def loss(part: int) -> Tensor:
        with torch.no_grad():
            wanted = _logits(dense, batches[part])
        return divergence(_logits(pruned.model, batches[part]), wanted)

    kept = KeptWeights(pruned.linears.values(), pruned.stored, MODEL_RATE)
    return train(kept, loss, len(batches), passes, seed, "distilling", progress)


def divergence(found: Tensor, wanted: Tensor) -> Tensor:  # [..., vocabulary] twice -> []
    """KL(wanted || found) of two sets of logits, the mean over tokens; float32, some tokens at a time."""
    found, wanted = found.flatten(0, -2), wanted.flatten(0, -2)
    size = max(1, CHUNK_BYTES // (4 * found.shape[-1]))
    parts = zip(found.split(size), wanted.split(size), strict=True)
    sums = [checkpoint(_divergence, some, goal, use_reentrant=False) for some, goal in parts]
    return torch.stack(sums).sum() / len(found)


def _divergence(found: Tensor, wanted: Tensor) -> Tensor:
    log_q, log_p = found.float().log_softmax(-1), wanted.float().log_softmax(-1)
    return nn.functional.kl_div(log_q, log_p, reduction="sum", log_target=True)


def _logits(model: nn.Module, ids: Tensor) -> Tensor:
    logits: Tensor = model(input_ids=ids, use_cache=False).logits
    return logits
