"""The text on its way through the blocks of a model, some samples at a time.

First the model runs once over the text with a stand-in for every block that notes what the block is called with
(masks and position embeddings differ from block to block in some families) and passes the hidden states on. After
that any block can be run alone, on the states that the blocks before it have left.

The states of the whole text are as large as some blocks; they are in memory, or on disk where memory is short. A block
may be on another device than the states: what it is called with goes there, and what becomes a state comes back.

A model whose blocks do more than map hidden states to hidden states is found by a trial on a few tokens and refused.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from twofour.prune.errors import ModelError, NonFiniteError
from twofour.prune.model.anatomy import Anatomy, Block
from twofour.prune.solving.statistics import Positions

BATCH_TOKENS = 4096
TRIAL_TOKENS = 16
STATES = "*-from-*"  # the files of states between uses


@dataclass(frozen=True)
class Call:
    """What a block is called with besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


class Batch:
    """Some samples on their way through the blocks: `hidden` is the input of the next block, [samples, length, width].

    dense: what the dense model has in the same place; None where nobody needs it.
    folder: where the states are between uses, one file each; None: they stay in memory.
    """

    def __init__(
        self,
        positions: Positions,
        hidden: Tensor,
        calls: list[Call],  # one a block
        dense: Tensor | None = None,
        folder: Path | None = None,
    ) -> None:
        self.positions, self.calls, self._folder = positions, calls, folder
        self._states: dict[str, Tensor] = {}
        self.hidden, self.dense = hidden, dense

    @property
    def hidden(self) -> Tensor:
        return self._get("hidden")

    @hidden.setter
    def hidden(self, states: Tensor) -> None:
        self._put("hidden", states)

    @property
    def dense(self) -> Tensor | None:
        return self._get("dense") if self._has_dense else None

    @dense.setter
    def dense(self, states: Tensor | None) -> None:
        self._has_dense = states is not None
        if states is not None:
            self._put("dense", states)

    def _get(self, name: str) -> Tensor:
        if self._folder is None:
            return self._states[name]
        with safe_open(self._path(name), framework="pt") as file:
            states: Tensor = file.get_tensor(name)
        return states

    def _put(self, name: str, states: Tensor) -> None:
        if self._folder is None:
            self._states[name] = states
            return
        part = self._path(f"{name}.part")  # a reader of the states before these must not see them change
        save_file({name: states.contiguous()}, part)
        part.replace(self._path(name))

    def _path(self, name: str) -> Path:
        assert self._folder is not None
        return self._folder / f"{name}-from-{self.positions.first_sample}"


@torch.no_grad()
def record(
    anatomy: Anatomy,
    ids: Tensor,
    mask: Tensor | None = None,
    batch_tokens: int | None = None,
    folder: Path | None = None,
) -> list[Batch]:
    """Run everything but the blocks, and note what the model calls each block with.

    mask: bool [samples, length], False at padding. batch_tokens: of one batch, about; None: BATCH_TOKENS.
    folder: as in `Batch`. Raises ModelError where the blocks cannot be walked.
    """
    _require_walkable(anatomy, ids)
    size = max(1, (batch_tokens or BATCH_TOKENS) // ids.shape[1])
    starts = range(0, len(ids), size)
    return [
        _record(anatomy, ids[at : at + size], None if mask is None else mask[at : at + size], at, folder)
        for at in starts
    ]


def propagate(block: Block, index: int, batches: list[Batch]) -> None:
    """Run the pruned block and keep its outputs as the inputs of the next."""
    for batch in batches:
        hidden = batch.hidden
        batch.hidden = run_block(block, index, hidden, batch).to(hidden.device)


def follow_dense(block: Block, index: int, batches: list[Batch]) -> None:
    """Run the dense block on the states of the dense model."""
    for batch in batches:
        before = batch.hidden if batch.dense is None else batch.dense
        batch.dense = run_block(block, index, before, batch).to(before.device)


def require_finite(index: int, batches: list[Batch]) -> None:
    """Raise NonFiniteError, naming the block and the place in the text, where the states behind it are not finite."""
    for batch in batches:
        for whose, states in (("pruned", batch.hidden), ("dense", batch.dense)):
            if states is not None:
                _require_finite(f"the output of the {whose} block {index}", states, batch.positions)


def _require_finite(what: str, states: Tensor, positions: Positions) -> None:
    rows = positions.rows(states, what)
    if not bool(torch.isfinite(torch.stack(rows.aminmax())).all()):
        place = positions.locate(int((~torch.isfinite(rows)).any(1).nonzero()[0]))
        raise NonFiniteError(
            f"{what} is NaN or infinite at {place}; check the model's weights and dtype, or leave that text out"
        )


def run_block(block: Block, index: int, hidden: Tensor, batch: Batch) -> Tensor:  # [samples, length, width]
    """Run a block as the model would for this batch; the result is on the device of the block."""
    call, device = batch.calls[index], next(block.module.parameters()).device
    output = block.module(hidden.to(device), *_moved(call.args, device), **_moved(call.kwargs, device))
    result: Tensor = output[0] if isinstance(output, tuple) else output
    return result


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, (tuple, list)):
        return type(value)(_moved(each, device) for each in value)
    return {name: _moved(each, device) for name, each in value.items()} if isinstance(value, dict) else value


def logits_behind(anatomy: Anatomy, ids: Tensor, states: Tensor) -> Tensor:  # [samples, length, vocabulary]
    """Return what the model predicts from the states behind its last block, [samples, length, width]."""
    with blocks_as(anatomy, lambda *args, **kwargs: states):
        return logits(anatomy.model, ids)


def states_behind(anatomy: Anatomy, ids: Tensor) -> Tensor:  # int64 [samples, length] -> [samples, length, width]
    """Return what comes out of the last block of the whole model."""
    return _outputs(anatomy, ids)[0]


def logits(model: nn.Module, ids: Tensor) -> Tensor:  # [samples, length, vocabulary]
    """Return what the model predicts."""
    result: Tensor = model(input_ids=ids, use_cache=False).logits
    return result


def _require_walkable(anatomy: Anatomy, ids: Tensor) -> None:
    """Compare the walk with the whole model on a few tokens."""
    trial = ids[:1, :TRIAL_TOKENS]
    outputs = _outputs(anatomy, trial)
    batch = _record(anatomy, trial, None, 0, None)
    for index, block in enumerate(anatomy.blocks):
        propagate(block, index, [batch])
    # NaN is equal to NaN here: the walk will say where it comes from.
    if len(outputs) != 1 or not torch.allclose(batch.hidden, outputs[0], rtol=0, atol=0, equal_nan=True):
        raise ModelError(_not_walkable(anatomy))


def _outputs(anatomy: Anatomy, ids: Tensor) -> list[Tensor]:
    """What the last block of the whole model returns, each time that it runs."""
    outputs: list[Tensor] = []
    handle = anatomy.blocks[-1].module.register_forward_hook(
        lambda module, args, output: outputs.append(output[0] if isinstance(output, tuple) else output)
    )
    try:
        _run_body(anatomy.model, ids, None)
    finally:
        handle.remove()
    return outputs


def _record(anatomy: Anatomy, ids: Tensor, mask: Tensor | None, first_sample: int, folder: Path | None) -> Batch:
    mask = None if mask is None or bool(mask.all()) else mask.bool()
    with _stand_ins(anatomy) as seen:
        _run_body(anatomy.model, ids, mask)
    if [index for index, _, _ in seen] != list(range(len(anatomy.blocks))):
        raise ModelError(_not_walkable(anatomy))
    positions = Positions(first_sample, ids.shape[0], ids.shape[1], mask)
    return Batch(positions, seen[0][1], [call for _, _, call in seen], folder=folder)


@contextmanager
def _stand_ins(anatomy: Anatomy) -> Iterator[list[tuple[int, Tensor, Call]]]:
    """Let every block note its call and pass the hidden states on."""
    seen: list[tuple[int, Tensor, Call]] = []

    def note(index: int, *args: Any, **kwargs: Any) -> Tensor:
        hidden: Tensor = args[0] if args else kwargs.pop("hidden_states")
        seen.append((index, hidden, Call(args[1:], kwargs)))
        return hidden

    with blocks_as(anatomy, note):
        yield seen


@contextmanager
def blocks_as(anatomy: Anatomy, forward: Callable[..., Tensor]) -> Iterator[None]:
    """Let `forward`, called with the number of the block first, stand in for every block.

    A `forward` of its own that a module has already, such as accelerate's hooks, is put back.
    """
    before = [vars(block.module).get("forward") for block in anatomy.blocks]
    try:
        for index, block in enumerate(anatomy.blocks):
            block.module.forward = partial(forward, index)
        yield
    finally:
        for block, own in zip(anatomy.blocks, before, strict=True):
            del block.module.forward
            if own is not None:
                block.module.forward = own


def _run_body(model: nn.Module, ids: Tensor, mask: Tensor | None) -> None:
    """Run the model without its lm_head, which would only cost time."""
    options = {} if mask is None else {"attention_mask": mask.long()}
    model.base_model(input_ids=ids, use_cache=False, **options)  # type: ignore[operator]


def _not_walkable(anatomy: Anatomy) -> str:
    kind = type(anatomy.model).__name__
    return f"the blocks of {kind} do not simply follow each other; give a standard causal language model"
