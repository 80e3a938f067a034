"""The text on its way through the blocks of a model, some samples at a time.

First the model runs once over the text with a stand-in for every block that notes what the block is called with
(masks and position embeddings differ from block to block in some families) and passes the hidden states on. After
that any block can be run alone, on the states that the blocks before it have left.

A model whose blocks do more than map hidden states to hidden states is found by a trial on a few tokens and refused.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from twofour.prune.anatomy import Anatomy, Block
from twofour.prune.errors import ModelError
from twofour.prune.statistics import Positions

BATCH_TOKENS = 4096
TRIAL_TOKENS = 16


@dataclass(frozen=True)
class Call:
    """What a block is called with besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


@dataclass
class Batch:
    """Some samples on their way through the blocks: `hidden` is the input of the next block.

    dense: what the dense model has in the same place; None where nobody needs it.
    """

    positions: Positions
    hidden: Tensor  # [samples, length, width]
    calls: list[Call]  # one a block
    dense: Tensor | None = None  # [samples, length, width]


def record(anatomy: Anatomy, ids: Tensor, mask: Tensor | None = None, batch_tokens: int | None = None) -> list[Batch]:
    """Run everything but the blocks, and note what each block is to be called with.

    mask: bool [samples, length], False at padding. batch_tokens: of one batch, about; None: BATCH_TOKENS.
    Raises ModelError where the blocks cannot be walked.
    """
    _require_walkable(anatomy, ids)
    size = max(1, (batch_tokens or BATCH_TOKENS) // ids.shape[1])
    starts = range(0, len(ids), size)
    return [_record(anatomy, ids[at : at + size], None if mask is None else mask[at : at + size], at) for at in starts]


def propagate(block: Block, index: int, batches: list[Batch]) -> None:
    """Run the pruned block and keep its outputs as the inputs of the next."""
    for batch in batches:
        batch.hidden = run_block(block, index, batch.hidden, batch)


def follow_dense(block: Block, index: int, batches: list[Batch]) -> None:
    """Run the dense block on the states of the dense model."""
    for batch in batches:
        batch.dense = run_block(block, index, batch.hidden if batch.dense is None else batch.dense, batch)


def run_block(block: Block, index: int, hidden: Tensor, batch: Batch) -> Tensor:  # [samples, length, width]
    """Run a block as the model would at that place in the batch."""
    call = batch.calls[index]
    output = block.module(hidden, *call.args, **call.kwargs)
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


def logits_behind(anatomy: Anatomy, ids: Tensor, states: Tensor) -> Tensor:  # [samples, length, vocabulary]
    """Return what the model makes of the states behind its last block, [samples, length, width]."""
    with _blocks_as(anatomy, lambda *args, **kwargs: states):
        return logits(anatomy.model, ids)


def logits(model: nn.Module, ids: Tensor) -> Tensor:  # [samples, length, vocabulary]
    """Return what the model predicts."""
    result: Tensor = model(input_ids=ids, use_cache=False).logits
    return result


def _require_walkable(anatomy: Anatomy, ids: Tensor) -> None:
    """Compare the walk with the whole model on a few tokens."""
    trial = ids[:1, :TRIAL_TOKENS]
    outputs: list[Tensor] = []
    last = anatomy.blocks[-1].module
    handle = last.register_forward_hook(
        lambda module, args, output: outputs.append(output[0] if isinstance(output, tuple) else output)
    )
    try:
        _run_body(anatomy.model, trial, None)
    finally:
        handle.remove()
    batch = _record(anatomy, trial, None, 0)
    for index, block in enumerate(anatomy.blocks):
        propagate(block, index, [batch])
    if len(outputs) != 1 or not torch.equal(batch.hidden, outputs[0]):
        raise ModelError(_not_walkable(anatomy))


def _record(anatomy: Anatomy, ids: Tensor, mask: Tensor | None, first_sample: int) -> Batch:
    mask = None if mask is None or bool(mask.all()) else mask.bool()
    with _stand_ins(anatomy) as seen:
        _run_body(anatomy.model, ids, mask)
    if [index for index, _, _ in seen] != list(range(len(anatomy.blocks))):
        raise ModelError(_not_walkable(anatomy))
    positions = Positions(first_sample, ids.shape[0], ids.shape[1], mask)
    return Batch(positions, seen[0][1], [call for _, _, call in seen])


@contextmanager
def _stand_ins(anatomy: Anatomy) -> Iterator[list[tuple[int, Tensor, Call]]]:
    """Let every block note its call and pass the hidden states on."""
    seen: list[tuple[int, Tensor, Call]] = []

    def note(index: int, *args: Any, **kwargs: Any) -> Tensor:
        hidden: Tensor = args[0] if args else kwargs.pop("hidden_states")
        seen.append((index, hidden, Call(args[1:], kwargs)))
        return hidden

    with _blocks_as(anatomy, note):
        yield seen


@contextmanager
def _blocks_as(anatomy: Anatomy, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Let `forward`, called with the number of the block first, stand in for every block."""
    try:
        for index, block in enumerate(anatomy.blocks):
            block.module.forward = partial(forward, index)
        yield
    finally:
        for block in anatomy.blocks:
            del block.module.forward


def _run_body(model: nn.Module, ids: Tensor, mask: Tensor | None) -> None:
    """Run the model without its lm_head, which would only cost time."""
    options = {} if mask is None else {"attention_mask": mask.long()}
    model.base_model(input_ids=ids, use_cache=False, **options)  # type: ignore[operator]


def _not_walkable(anatomy: Anatomy) -> str:
    kind = type(anatomy.model).__name__
    return f"the blocks of {kind} do not simply follow each other; give a standard causal language model"
