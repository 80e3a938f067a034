"""The whole pruned model trained to predict what the dense model predicts.

The loss is the divergence KL(dense || pruned) of the next-token probabilities, over the same text. Of the dense model
only the states behind its last block are needed, which the walk leaves: what comes after the blocks is not pruned, so
the pruned model itself turns them into the dense predictions. One model is in memory, and the optimiser.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils.checkpoint import checkpoint

from twofour.prune.format.rounding import as_int8
from twofour.prune.format.schemes import TWO_OF_FOUR, Scheme
from twofour.prune.model.anatomy import Anatomy
from twofour.prune.model.batches import Batch, blocks_as, logits, logits_behind
from twofour.prune.progress import Progress, silent
from twofour.prune.recovery.kept import KeptWeights
from twofour.prune.recovery.training import Loss, Outcome, TrainingJournal, train

MODEL_RATE = 0.001
CHUNK_BYTES = 4 << 20  # float32 [tokens, vocabulary] at a time


def distil(
    anatomy: Anatomy,
    ids: Tensor,  # int64 [samples, length]
    batches: Sequence[Batch],  # with the states behind the last block
    passes: int,
    seed: int,
    progress: Progress = silent,
    journal: TrainingJournal | None = None,
    schemes: Mapping[str, Scheme] | None = None,
    lean: bool = False,
    recompute: bool = False,
) -> Outcome:
    """Train all kept weights so that the pruned model predicts what the dense model predicts on the text `ids`.

    schemes: of the linears, by name; None: all are 2:4 in the dtype of the model. Dense linears are not trained.
    lean: see `KeptWeights`. recompute: do not keep what a block does, but compute it again on the way back.
    """
    kept = kept_weights(anatomy, schemes or dict.fromkeys(anatomy.linears, "2:4"), lean)
    loss = whole_loss(anatomy, ids, batches, recompute)
    return train(kept, loss, len(batches), passes, seed, "distilling", progress, journal)


def whole_loss(anatomy: Anatomy, ids: Tensor, batches: Sequence[Batch], recompute: bool = False) -> Loss:
    """Return the divergence of the model from the dense one on a batch, by the number of the batch."""
    texts = ids.split([batch.positions.samples for batch in batches])

    def loss(part: int) -> Tensor:
        dense, text = batches[part].dense, texts[part].to(anatomy.device)
        assert dense is not None, "the walk follows the dense model where the whole is distilled"
        with torch.no_grad():
            wanted = logits_behind(anatomy, text, dense.to(anatomy.device))
        with recomputed(anatomy) if recompute else nullcontext():
            return divergence(logits(anatomy.model, text), wanted)

    return loss


def kept_weights(anatomy: Anatomy, schemes: Mapping[str, Scheme], lean: bool = False) -> KeptWeights:
    """The kept weights of the 2:4 linears of a mixture, rounded to int8 where they will be stored so."""
    trained = {name: linear for name, linear in anatomy.linears.items() if schemes[name] in TWO_OF_FOUR}
    roundings = [as_int8 if schemes[name] == "2:4-int8" else None for name in trained]
    return KeptWeights(trained.values(), anatomy.stored_dtype, MODEL_RATE, roundings, lean)


@contextmanager
def recomputed(anatomy: Anatomy) -> Iterator[None]:
    """Let every block keep its inputs alone for the way back (Chen et al., arXiv 1604.06174). No bit changes."""
    forwards = [block.module.forward for block in anatomy.blocks]

    def again(index: int, *args: Any, **kwargs: Any) -> Any:
        return checkpoint(forwards[index], *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    with blocks_as(anatomy, again):
        yield


def divergence(found: Tensor, wanted: Tensor) -> Tensor:  # [..., vocabulary] twice -> []
    """KL(wanted || found) of two sets of logits, the mean over tokens, in float32; only `found` gets a gradient."""
    result: Tensor = _Divergence.apply(found.flatten(0, -2), wanted.flatten(0, -2))  # type: ignore[no-untyped-call]
    return result


class _Divergence(torch.autograd.Function):
    """The slope of a token's divergence is q - p: one pass computes value and slope, some tokens at a time.

    The slope is kept in the dtype of the logits, for float16 in float32: most of it is too small for float16 until it
    is multiplied by the scale of the loss.
    """

    @staticmethod
    def forward(ctx: Any, found: Tensor, wanted: Tensor) -> Tensor:  # [tokens, vocabulary] twice -> []
        wide = torch.float32 if found.dtype == torch.float16 else found.dtype
        slope, sums = torch.empty_like(found, dtype=wide), []
        size = max(1, CHUNK_BYTES // (4 * found.shape[-1]))
        for chunk, some, goal in zip(slope.split(size), found.split(size), wanted.split(size), strict=True):
            own, other = some.float(), goal.float()
            q, p = own.softmax(-1), other.softmax(-1)
            terms = torch.where(p == 0, 0.0, p * (other - own)).sum(-1)  # 0 log 0 is 0, and NaN is NaN
            sums.append((terms + _log_sum(own, q) - _log_sum(other, p)).sum())
            chunk.copy_(q.sub_(p).div_(len(found)))
        ctx.save_for_backward(slope)
        ctx.dtype = found.dtype
        return torch.stack(sums).sum() / len(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return torch.mul(slope, gradient, out=torch.empty_like(slope, dtype=ctx.dtype)), None


def _log_sum(logits: Tensor, probabilities: Tensor) -> Tensor:  # [tokens, vocabulary] twice -> [tokens]
    """The logarithm of the sum of exponentials, from the likeliest: an exponential less for each logit."""
    return logits.amax(-1) - probabilities.amax(-1).log()
