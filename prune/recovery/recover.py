"""Recovery: what 2:4 lost, won back by training the kept weights against the dense model, masks fixed.

Block by block, inside the walk: a pruned block is given what the pruned blocks before it make of the text, and learns
to return what the dense model has at that place, so it also makes up for the blocks before. The loss of a token is its
squared error relative to the square of the dense output: a few tokens with huge states do not drown the others, and
the next block normalises anyway. Memory is that of one block and one more copy of the hidden states.

Then the whole model: the divergence KL(dense || pruned) of the next-token probabilities, over the same text. Of the
dense model only the states behind its last block are needed, which the walk leaves: what comes after the blocks is not
pruned, so the pruned model itself turns them into the dense predictions. One model is in memory, and the optimiser.

Only kept weights of pruned linears learn. A norm's gain in front of a linear only scales its columns, which kept
weights can do themselves; everything outside the linears stays to the bit.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from twofour.prune.model.anatomy import Anatomy, Block
from twofour.prune.model.batches import Batch, logits, logits_behind, run_block
from twofour.prune.progress import Progress, silent
from twofour.prune.recovery.kept import Keep, KeptWeights, Loss, Outcome, Rounding, train

STEP_TOKENS = 512  # one step of the optimiser sees about this many: of the same text, many small steps win more back
BLOCK_RATE, MODEL_RATE = 0.01, 0.001
CHUNK_BYTES = 4 << 20  # float32 [tokens, vocabulary] at a time


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


def step_tokens(text_tokens: int) -> int:
    """Return how many tokens one step sees: fewer where a text is so short that none would be left to validate."""
    return min(STEP_TOKENS, text_tokens // 2)


def recover_block(
    block: Block,
    index: int,
    batches: list[Batch],
    stored: torch.dtype,
    passes: int,
    seed: int,
    rounding: Rounding | None = None,
) -> Outcome:
    """Train the kept weights of a pruned block so that it returns the dense model's states at its place."""
    kept = KeptWeights(block.linears.values(), stored, BLOCK_RATE, rounding)
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


def distil(
    pruned: Anatomy,
    ids: Tensor,  # int64 [samples, length]
    batches: Sequence[Batch],  # with the states behind the last block
    passes: int,
    seed: int,
    progress: Progress = silent,
    keep: Keep | None = None,
    rounding: Rounding | None = None,
) -> Outcome:
    """Train all kept weights so that the pruned model predicts what the dense model predicts on the text `ids`."""
    texts = ids.to(pruned.device).split([batch.positions.samples for batch in batches])

    def loss(part: int) -> Tensor:
        dense = batches[part].dense
        assert dense is not None, "the walk follows the dense model where the whole is distilled"
        with torch.no_grad():
            wanted = logits_behind(pruned, texts[part], dense.to(pruned.device))
        return divergence(logits(pruned.model, texts[part]), wanted)

    kept = KeptWeights(pruned.linears.values(), pruned.stored, MODEL_RATE, rounding)
    return train(kept, loss, len(texts), passes, seed, "distilling", progress, keep)


def divergence(found: Tensor, wanted: Tensor) -> Tensor:  # [..., vocabulary] twice -> []
    """KL(wanted || found) of two sets of logits, the mean over tokens, in float32; only `found` gets a gradient."""
    result: Tensor = _Divergence.apply(found.flatten(0, -2), wanted.flatten(0, -2))  # type: ignore[no-untyped-call]
    return result


class _Divergence(torch.autograd.Function):
    """The slope of a token's divergence is q - p, so one pass gives both, and some tokens at a time are enough.

    It is kept in the dtype of the logits, but for float16 in float32: most of it is below what float16 can hold, until
    it is multiplied by the scale of the loss.
    """

    @staticmethod
    def forward(ctx: Any, found: Tensor, wanted: Tensor) -> Tensor:  # [tokens, vocabulary] twice -> []
        wide = torch.float32 if found.dtype == torch.float16 else found.dtype
        slope, sums = torch.empty_like(found, dtype=wide), []
        size = max(1, CHUNK_BYTES // (4 * found.shape[-1]))
        for part, some, goal in zip(slope.split(size), found.split(size), wanted.split(size), strict=True):
            log_q, log_p = some.float().log_softmax(-1), goal.float().log_softmax(-1)
            p = log_p.exp()
            sums.append(torch.where(p == 0, 0.0, p * (log_p - log_q)).sum())  # 0 log 0 is 0, and NaN is NaN
            part.copy_(log_q.exp_().sub_(p).div_(len(found)))
        ctx.save_for_backward(slope)
        ctx.dtype = found.dtype
        return torch.stack(sums).sum() / len(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return torch.mul(slope, gradient, out=torch.empty_like(slope, dtype=ctx.dtype)), None
