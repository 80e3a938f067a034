"""The walk: one decoder block at a time, collect -> prune -> propagate. The only place with hooks.

First the model runs once over the text with a stand-in for every block that notes what the block is called with
(masks and position embeddings differ from block to block in some families) and passes the hidden states on. Then each
block runs twice on the real hidden states: once dense, while its linears' inputs are counted, and once pruned, which
gives the next block the inputs it will have in the pruned model. Linears inside a block see dense inputs.

A model whose blocks do more than map hidden states to hidden states is found by a trial on a few tokens and refused.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from twofour.prune.anatomy import Anatomy, Block
from twofour.prune.checkpoint import SparseWeight
from twofour.prune.errors import FactorError, ModelError
from twofour.prune.kept import Outcome
from twofour.prune.packed import Packed
from twofour.prune.progress import Progress, Step, silent, track
from twofour.prune.recipe import PrunedLinear
from twofour.prune.statistics import Observer, Positions, Statistic, layer_loss

BATCH_TOKENS = 4096
TRIAL_TOKENS = 16

Solve = Callable[[Tensor, Statistic], Tensor]  # (float32 [out, in], its inputs) -> 2:4 [out, in]
WeightSolve = Callable[[Tensor], Tensor]  # float32 [out, in] -> 2:4 [out, in]
Store = Callable[[Tensor], SparseWeight]  # 2:4 float32 [out, in] -> the same, rounded as it will be stored
NewStatistic = Callable[[int, torch.device], Statistic]
Recover = Callable[[Block, int, list["Batch"]], Outcome]  # trains a pruned block, in place


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


@dataclass(frozen=True)
class PrunedBlock:
    """The new weights of one block as they will be stored, and what they lose."""

    weights: dict[str, SparseWeight]
    linears: dict[str, PrunedLinear]
    recovered: Outcome | None = None


@torch.no_grad()
def walk(
    anatomy: Anatomy,
    ids: Tensor,  # int64 [samples, length]
    solve: Solve,
    new_statistic: NewStatistic,
    mask: Tensor | None = None,  # bool [samples, length]; False: padding
    progress: Progress = silent,
    store: Store | None = None,  # None: in the dtype of the model
    recover: Recover | None = None,
    batch_tokens: int = BATCH_TOKENS,
) -> Iterator[PrunedBlock]:
    """Prune the model in place, block by block. Raises NonFiniteError, FactorError or ModelError, naming the linear."""
    store = store or in_dtype(anatomy.stored)
    _require_walkable(anatomy, ids)
    batches = record(anatomy, ids, mask, batch_tokens)
    started = time.perf_counter()
    for index, block in enumerate(anatomy.blocks):
        if recover:
            follow_dense(block, index, batches)
        observer = collect(block, index, batches, new_statistic)
        pruned = prune_block(block, observer, solve, store)
        if recover:
            outcome = recover(block, index, batches)
            pruned = replace(with_weights(pruned, block, store), recovered=outcome)
        propagate(block, index, batches)
        loss = max(linear.loss for linear in pruned.linears.values())
        elapsed_s = time.perf_counter() - started
        progress(Step("pruning blocks", index + 1, len(anatomy.blocks), elapsed_s, f"largest loss {loss:.4f}"))
        yield pruned


def record(anatomy: Anatomy, ids: Tensor, mask: Tensor | None = None, batch_tokens: int = BATCH_TOKENS) -> list[Batch]:
    """Run everything but the blocks, and note what each block is to be called with."""
    size = max(1, batch_tokens // ids.shape[1])
    starts = range(0, len(ids), size)
    return [_record(anatomy, ids[at : at + size], None if mask is None else mask[at : at + size], at) for at in starts]


def collect(block: Block, index: int, batches: list[Batch], new_statistic: NewStatistic) -> Observer:
    """Run the dense block over all batches and count what its linears are given."""
    observer = Observer(new_statistic)
    handles = [
        linear.register_forward_pre_hook(partial(_see, observer, name)) for name, linear in block.linears.items()
    ]
    try:
        for batch in batches:
            observer.start(batch.positions)
            run_block(block, index, batch.hidden, batch)
    finally:
        for handle in handles:
            handle.remove()
    return observer


def in_dtype(stored: torch.dtype) -> Store:
    """Store as a dense weight in this dtype, each weight rounded to nearest even."""
    return lambda weight: weight.to(stored)


def prune_block(block: Block, observer: Observer, solve: Solve, store: Store) -> PrunedBlock:
    """Replace the weights of a block; linears that share an input are solved as one."""
    solved: dict[str, tuple[SparseWeight, PrunedLinear]] = {}
    for names, statistic in observer.groups():
        solved |= _solve_group({name: block.linears[name] for name in names}, statistic, solve, store)
    if unseen := block.linears.keys() - solved.keys():
        raise ModelError(f"{min(unseen)} saw no token of the calibration text; calibrate on more text")
    return _pruned_block(block, solved)


@torch.no_grad()
def prune_without_text(
    anatomy: Anatomy, solve: WeightSolve, progress: Progress = silent, store: Store | None = None
) -> Iterator[PrunedBlock]:
    """Prune the model in place by its weights alone."""
    store = store or in_dtype(anatomy.stored)
    for block in track(anatomy.blocks, "pruning blocks", progress):
        yield _pruned_block(
            block,
            {
                name: _replace(linear, solve(linear.weight.to(torch.float32, copy=True)), None, store)
                for name, linear in block.linears.items()
            },
        )


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


def with_weights(pruned: PrunedBlock, block: Block, store: Store) -> PrunedBlock:
    """Take the weights as they are now, after training, as they will be stored."""
    return replace(pruned, weights={name: store(linear.weight.float()) for name, linear in block.linears.items()})


def _pruned_block(block: Block, solved: dict[str, tuple[SparseWeight, PrunedLinear]]) -> PrunedBlock:
    return PrunedBlock(  # in the order of the block
        {name: solved[name][0] for name in block.linears}, {name: solved[name][1] for name in block.linears}
    )


def _solve_group(
    linears: dict[str, nn.Linear], statistic: Statistic, solve: Solve, store: Store
) -> dict[str, tuple[SparseWeight, PrunedLinear]]:
    stacked = torch.cat([linear.weight.float() for linear in linears.values()])
    try:
        solved = solve(stacked, statistic).split([linear.out_features for linear in linears.values()])
    except FactorError as error:
        raise FactorError(f"{next(iter(linears))}: {error}") from error
    return {
        name: _replace(linear, after, statistic, store)
        for (name, linear), after in zip(linears.items(), solved, strict=True)
    }


def _replace(
    linear: nn.Linear, after: Tensor, statistic: Statistic | None, store: Store
) -> tuple[SparseWeight, PrunedLinear]:
    """Put the new weight in place, rounded as it will be stored: what is stored is what propagates and what is lost."""
    before = linear.weight.to(torch.float32, copy=True)  # pruned in place below
    weight = store(after)
    stored = (weight.unpack() if isinstance(weight, Packed) else weight).float()
    linear.weight.copy_(stored)
    loss = layer_loss(before, stored, statistic)
    tokens = 0 if statistic is None else statistic.tokens
    return weight, PrunedLinear((linear.out_features, linear.in_features), loss, tokens)


def _see(observer: Observer, name: str, linear: nn.Module, args: tuple[Tensor, ...]) -> None:
    observer.see(name, args[0])


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

    try:
        for index, block in enumerate(anatomy.blocks):
            block.module.forward = partial(note, index)
        yield seen
    finally:
        for block in anatomy.blocks:
            del block.module.forward


def _run_body(model: nn.Module, ids: Tensor, mask: Tensor | None) -> None:
    """Run the model without its lm_head, which would only cost time."""
    options = {} if mask is None else {"attention_mask": mask.long()}
    model.base_model(input_ids=ids, use_cache=False, **options)  # type: ignore[operator]


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
    (batch,) = record(anatomy, trial)
    for index, block in enumerate(anatomy.blocks):
        propagate(block, index, [batch])
    if len(outputs) != 1 or not torch.equal(batch.hidden, outputs[0]):
        raise ModelError(_not_walkable(anatomy))


def _not_walkable(anatomy: Anatomy) -> str:
    kind = type(anatomy.model).__name__
    return f"the blocks of {kind} do not simply follow each other; give a standard causal language model"
