"""The walk: one decoder block at a time, collect -> prune -> propagate.

Each block runs twice on the hidden states of the text: once dense, while the inputs of its linears are counted, and
once pruned, to give the next block the inputs that it will have in the pruned model. Linears inside a block see dense
inputs; the statistics of an expert are drawn towards those of all experts (`solving.statistics.shrink`). Where weights
are trained, the dense model also runs on states of its own, and a block is trained between its two runs.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn

from twofour.prune.errors import FactorError, ModelError
from twofour.prune.format.schemes import StoredWeight, expanded
from twofour.prune.label.manifest import PrunedLinear
from twofour.prune.machine.heap import give_back
from twofour.prune.model.anatomy import Anatomy, Block
from twofour.prune.model.batches import Batch, follow_dense, propagate, require_finite, run_block
from twofour.prune.model.experts import Expert
from twofour.prune.progress import Progress, counter, silent, track
from twofour.prune.recovery.training import Outcome
from twofour.prune.solving.statistics import Observer, Statistic, layer_loss

Solve = Callable[[Tensor, Statistic], Tensor]  # (float32 [out, in], its inputs) -> 2:4 [out, in]
WeightSolve = Callable[[Tensor], Tensor]  # float32 [out, in] -> 2:4 [out, in]
ToStored = Callable[[Tensor], StoredWeight]  # 2:4 float32 [out, in] -> the same, rounded as it will be stored
NewStatistic = Callable[[int, torch.device], Statistic]
Recover = Callable[[Block, int, list[Batch]], Outcome]  # trains a pruned block, in place


class BlockJournal(Protocol):
    """What keeps the blocks that are done: a walk that was cut off can go on, and no weight is in memory twice."""

    def restore(self, batches: list[Batch]) -> Iterator["PrunedBlock"]:
        """Give the blocks that are done, and set the states of the batches to those behind the last one."""
        ...

    def save(self, index: int, pruned: "PrunedBlock", batches: list[Batch]) -> None:
        """Keep a block, and the states behind it."""
        ...


@dataclass(frozen=True)
class PrunedBlock:
    """The new weights of one block as they will be stored, and what they lose.

    Once a journal has the weights, they are not here any more.
    """

    weights: dict[str, StoredWeight]
    linears: dict[str, PrunedLinear]
    recovered: Outcome | None = None


@torch.no_grad()
def walk(
    anatomy: Anatomy,
    batches: list[Batch],
    solve: Solve,
    new_statistic: NewStatistic,
    progress: Progress = silent,
    to_stored: ToStored | None = None,  # None: in the dtype of the model
    recover: Recover | None = None,
    journal: BlockJournal | None = None,
    device: str = "cpu",  # where a block is while it is worked on
) -> Iterator[PrunedBlock]:
    """Prune the model in place, block by block, and leave in the batches what comes out of the last one.

    Raises NonFiniteError, FactorError or ModelError, naming the linear.
    """
    to_stored = to_stored or in_dtype(anatomy.stored_dtype)
    done = 0
    for pruned in journal.restore(batches) if journal else ():
        put(anatomy.blocks[done], pruned.weights)
        done += 1
        yield replace(pruned, weights={})
    step = counter("pruning blocks", len(anatomy.blocks), progress, done)
    for index, block in enumerate(anatomy.blocks[done:], start=done):
        block.module.to(device)
        pruned = pass_through(block, index, batches, solve, new_statistic, to_stored, recover)
        block.module.cpu()
        give_back()
        if journal:
            journal.save(index, pruned, batches)
            pruned = replace(pruned, weights={})
        step(f"largest loss {max(linear.loss for linear in pruned.linears.values()):.4f}")
        yield pruned


def pass_through(
    block: Block,
    index: int,
    batches: list[Batch],
    solve: Solve,
    new_statistic: NewStatistic,
    to_stored: ToStored,
    recover: Recover | None,
) -> PrunedBlock:
    """Prune one block, train it where that is asked for, and leave in the batches what comes out of it."""
    if recover:
        follow_dense(block, index, batches)
    observer = collect(block, index, batches, new_statistic)
    give_back()
    pruned = prune_block(block, observer, solve, to_stored)
    del observer  # its Hessians are as large as a block
    if recover:
        outcome = recover(block, index, batches)
        pruned = replace(with_weights(pruned, block, to_stored), recovered=outcome)
    propagate(block, index, batches)
    require_finite(index, batches)
    return pruned


def collect(block: Block, index: int, batches: list[Batch], new_statistic: NewStatistic) -> Observer:
    """Run the dense block over all batches and count what its linears are given."""
    observer = Observer(new_statistic)
    handles = [
        linear.register_forward_pre_hook(partial(_see, observer, name, block.expert_of(name)))
        for name, linear in block.linears.items()
    ]
    try:
        for batch in batches:
            observer.start(batch.positions)
            run_block(block, index, batch.hidden, batch)
        for path, experts in block.experts.items():
            experts.run_empty()
            for peers in experts.peers(path):
                observer.shrink(peers)
    finally:
        for handle in handles:
            handle.remove()
    return observer


def in_dtype(dtype: torch.dtype) -> ToStored:
    """Store as a dense weight in this dtype, each weight rounded to nearest even."""
    return lambda weight: weight.to(dtype)


def prune_block(block: Block, observer: Observer, solve: Solve, to_stored: ToStored) -> PrunedBlock:
    """Replace the weights of a block; linears that share an input are solved as one."""
    solved: dict[str, tuple[StoredWeight, PrunedLinear]] = {}
    for names, statistic in observer.groups():
        solved |= _solve_group({name: block.linears[name] for name in names}, statistic, solve, to_stored)
    if unseen := block.linears.keys() - solved.keys():
        raise ModelError(f"{min(unseen)} saw no token of the calibration text; calibrate on more text")
    return _pruned_block(block, solved)


@torch.no_grad()
def prune_without_text(
    anatomy: Anatomy,
    solve: WeightSolve,
    progress: Progress = silent,
    to_stored: ToStored | None = None,
    journal: BlockJournal | None = None,
) -> Iterator[PrunedBlock]:
    """Prune the model in place by its weights alone. It takes seconds, so after a cut-off it begins anew."""
    to_stored = to_stored or in_dtype(anatomy.stored_dtype)
    for index, block in enumerate(track(anatomy.blocks, "pruning blocks", progress)):
        solved = {
            name: _replace(linear, solve(linear.weight.to(torch.float32, copy=True)), None, to_stored)
            for name, linear in block.linears.items()
        }
        pruned = _pruned_block(block, solved)
        if journal:
            journal.save(index, pruned, [])
            pruned = replace(pruned, weights={})
        yield pruned


def with_weights(pruned: PrunedBlock, block: Block, to_stored: ToStored) -> PrunedBlock:
    """Take the weights as they are now, after training; rounded as they will be stored, in the model too."""
    weights = {name: to_stored(linear.weight.float()) for name, linear in block.linears.items()}
    put(block, weights)
    return replace(pruned, weights=weights)


@torch.no_grad()
def put(block: Block, weights: Mapping[str, StoredWeight]) -> None:
    """Give the linears of a block these weights."""
    for name, weight in weights.items():
        block.linears[name].weight.copy_(expanded(weight))


def _pruned_block(block: Block, solved: dict[str, tuple[StoredWeight, PrunedLinear]]) -> PrunedBlock:
    return PrunedBlock(  # in the order of the block
        {name: solved[name][0] for name in block.linears}, {name: solved[name][1] for name in block.linears}
    )


def _solve_group(
    linears: dict[str, nn.Linear], statistic: Statistic, solve: Solve, to_stored: ToStored
) -> dict[str, tuple[StoredWeight, PrunedLinear]]:
    stacked = torch.cat([linear.weight.float() for linear in linears.values()])
    try:
        solved = solve(stacked, statistic).split([linear.out_features for linear in linears.values()])
    except FactorError as error:
        raise FactorError(f"{next(iter(linears))}: {error}") from error
    return {
        name: _replace(linear, after, statistic, to_stored)
        for (name, linear), after in zip(linears.items(), solved, strict=True)
    }


def _replace(
    linear: nn.Linear, after: Tensor, statistic: Statistic | None, to_stored: ToStored
) -> tuple[StoredWeight, PrunedLinear]:
    """Put the new weight in place, rounded as it will be stored: what is stored is what propagates and what is lost."""
    before = linear.weight.to(torch.float32, copy=True)  # pruned in place below
    weight = to_stored(after)
    stored = expanded(weight).float()
    linear.weight.copy_(stored)
    loss = layer_loss(before, stored, statistic)
    tokens = 0 if statistic is None else statistic.tokens
    return weight, PrunedLinear((linear.out_features, linear.in_features), loss, tokens)


def _see(observer: Observer, name: str, expert: Expert | None, linear: nn.Module, args: tuple[Tensor, ...]) -> None:
    observer.see(name, args[0], None if expert is None else expert.given)
