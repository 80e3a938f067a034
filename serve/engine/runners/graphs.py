"""Decode steps that are captured once for each shape and replayed: the CPU launches one graph for thousands of kernels.

A step in which every sequence computes exactly one token is padded to a shape: a number of rows, and a number of
cache blocks for each of them. A captured step knows only the shape; it reads the rest from one buffer, which is filled
before each replay:

    inputs   [ tokens | positions | slots | entered | table ]    rows numbers each, and rows * blocks of the table

    A row without a sequence is a token 0 at the position 0 of the scratch block, which no sequence ever gets.
    A row that enters no block zeroes the scratch block. A table is filled up with the last block of its row, as in
    a step that is not captured (paged.py), and what is behind its position is masked.

So no row reads what another wrote, and only rows without a sequence read the scratch block. All other steps run without
a graph: prefill, shapes that were not captured, and steps whose lengths differ so much that most of the table would be
padding. Kernels that are chosen by the number of tokens get the padded number.

Each shape is another recording, with other kernels: each is replayed once, full, and compared with the same step
without a graph.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from twofour.prune.errors import ModelError, in_a_line
from twofour.serve.engine.runners import Chunk
from twofour.serve.engine.runners.generic import GenericRunner
from twofour.serve.engine.runners.paged import SHORT, Bounded, Step, zero

MOST_PADDING = 4  # times the blocks that are attended to: a factor of 2 from rounding the rows up, 2 from the lengths

log = logging.getLogger(__name__)

Launch = Callable[[], None]
Capture = Callable[[Launch], Launch]  # record what a function launches; the result launches it again


class Shape(NamedTuple):
    """All that a captured step knows of the sequences in it."""

    rows: int
    blocks: int  # of each row

    @property
    def numbers(self) -> int:
        """The size of its inputs."""
        return self.rows * (4 + self.blocks)


def shapes(max_rows: int, context_length: int, block_size: int, cache_blocks: int) -> list[Shape]:
    """All shapes to which a decode step may be padded, the largest first.

    Rows and lengths double. A table has no more blocks than the cache, unless it is one of the shortest, so that
    gathering it for one layer takes no more memory than the cache of that layer.
    """
    longest = -(-context_length // block_size)
    shortest = min(longest, -(-SHORT // block_size))
    every = [Shape(rows, blocks) for rows in _doubling(1, max_rows) for blocks in _doubling(shortest, longest)]
    return [s for s in reversed(every) if s.blocks == shortest or s.rows * s.blocks <= cache_blocks]


def _doubling(first: int, last: int) -> list[int]:
    sizes = [first]
    while sizes[-1] < last:
        sizes.append(min(2 * sizes[-1], last))
    return sizes


def inputs(shape: Shape, chunks: Sequence[Chunk], block_size: int, scratch: int) -> list[int]:
    """What a replay reads, [shape.numbers], for chunks of one token each."""
    nobody = Chunk([0], 0, [scratch], range(1))
    rows = [*chunks, *[nobody] * (shape.rows - len(chunks))]
    places = [divmod(row.start, block_size) for row in rows]
    blocks = [row.blocks[index] for row, (index, _) in zip(rows, places, strict=True)]
    table: list[int] = []
    for row, (index, _), block in zip(rows, places, blocks, strict=True):
        table += [*row.blocks[:index], *[block] * (shape.blocks - index)]
    return [
        *(row.tokens[0] for row in rows),
        *(row.start for row in rows),
        *(block * block_size + offset for block, (_, offset) in zip(blocks, places, strict=True)),
        *(scratch if offset else block for block, (_, offset) in zip(blocks, places, strict=True)),
        *table,
    ]


def full_step(shape: Shape, block_size: int, cache_blocks: int) -> list[Chunk]:
    """Chunks that fill a shape: no two have a block in common, and some enter their last one."""
    rows = min(shape.rows, cache_blocks)
    most = min(shape.blocks, cache_blocks // rows)
    last = (most - 1) * block_size  # a position that every context with so many blocks has
    starts = [max(0, last - row % (2 * block_size)) for row in range(rows)]
    own = [range(row * most, row * most + start // block_size + 1) for row, start in enumerate(starts)]
    return [Chunk([row], start, blocks, range(1)) for row, (start, blocks) in enumerate(zip(starts, own, strict=True))]


class DecodeGraphs:
    """A runner that replays the decode steps it has captured and hands all others to another runner."""

    best = None

    def __init__(self, eager: GenericRunner, shapes: Sequence[Shape], capture: Capture) -> None:
        """Capture every shape, in the order given. Raises ModelError if one gives other logits when it is replayed."""
        self._eager = eager
        self._inputs = torch.zeros(max(s.numbers for s in shapes), dtype=torch.int64, device=eager.device)
        most_rows = max(s.rows for s in shapes)
        self._every_row = torch.arange(most_rows, device=eager.device)
        logits = eager.forward([Chunk([0], 0, [eager.scratch], range(1))])
        self._logits = logits.new_empty(most_rows, logits.shape[1])
        self._rows, self._blocks = (sorted(set(sizes)) for sizes in zip(*shapes, strict=True))
        self._replays: dict[Shape, Launch] = {}
        for shape in shapes:
            self._fill(shape, [])
            self._replays[shape] = capture(partial(self._launch, shape))
        self.replayed = 0  # steps since the verification
        self._verify()

    def __len__(self) -> int:
        return len(self._replays)

    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        shape = self._shape(chunks)
        if shape is None:
            return self._eager.forward(chunks)
        self.replayed += 1
        return self._replay(shape, chunks)

    def _replay(self, shape: Shape, chunks: Sequence[Chunk]) -> Tensor:
        self._fill(shape, chunks)
        self._replays[shape]()
        return self._logits[: len(chunks)].clone()

    def _shape(self, chunks: Sequence[Chunk]) -> Shape | None:
        """The smallest captured shape that holds these chunks; None if they should run without a graph."""
        if not all(len(chunk.tokens) == len(chunk.wanted) == 1 for chunk in chunks):
            return None
        held = [chunk.start // self._eager.block_size + 1 for chunk in chunks]
        shape = Shape(_next(self._rows, len(held)), _next(self._blocks, max(held)))
        if shape not in self._replays:
            return None
        is_mostly_padding = shape.rows * shape.blocks > MOST_PADDING * sum(held)
        return None if is_mostly_padding and shape.blocks > self._blocks[0] else shape

    def _fill(self, shape: Shape, chunks: Sequence[Chunk]) -> None:
        numbers = inputs(shape, chunks, self._eager.block_size, self._eager.scratch)
        self._inputs[: shape.numbers].copy_(torch.tensor(numbers))

    def _launch(self, shape: Shape) -> None:
        """One step over the inputs: this is what is captured."""
        parts = self._inputs[: shape.numbers].split([*[shape.rows] * 4, shape.rows * shape.blocks])
        tokens, positions, slots, entered, table = parts
        rows, layers = slice(0, shape.rows), self._eager.layers
        zero(layers, entered)
        part = Bounded(rows, table.view(shape), positions)
        step = Step(layers, tokens[None], positions[None], slots, self._every_row[rows], [part])
        self._logits[rows].copy_(self._eager.compute(step))

    def _verify(self) -> None:
        error = self._eager.deviation(self.forward)
        self.replayed = 0
        if not error < self._eager.tolerance:
            raise ModelError(f"replayed decode steps give logits that differ by {error:.1%} from the model's own")
        self._eager.occupy()
        for shape in self._replays:
            error = self._deviation(shape)
            if not error < self._eager.tolerance:
                raise ModelError(
                    f"replayed decode steps of {shape.rows} rows of {shape.blocks} blocks give logits that differ by "
                    f"{error:.1%} from those of the same step as it is"
                )

    def _deviation(self, shape: Shape) -> float:
        """How far the worst row of a full step is from the same step without a graph, relative to its norm."""
        chunks = full_step(shape, self._eager.block_size, self._eager.scratch)
        own = self._eager.forward(chunks).float()
        self._logits.fill_(torch.nan)  # a replay that leaves out a row must not find what the last one computed
        found = self._replay(shape, chunks).float()
        return float(((found - own).norm(dim=1) / own.norm(dim=1)).max())


def _next(sizes: Sequence[int], needed: int) -> int:
    """The smallest size that is enough; 0 if none is."""
    return next((size for size in sizes if size >= needed), 0)


@dataclass(frozen=True)
class Captured:
    """Decode steps that can be replayed. `note`: why there are none, if they were asked for."""

    graphs: DecodeGraphs | None = None
    nbytes: int = 0
    note: str | None = None


def try_capture(
    eager: GenericRunner, shapes: Sequence[Shape], capture: Capture, free_bytes: Callable[[], int]
) -> Captured:
    """Capture decode steps and measure their memory. If one cannot be captured none is, and the log says why."""
    free_before = free_bytes()
    try:
        graphs = DecodeGraphs(eager, shapes, capture)
        return Captured(graphs, max(0, free_before - free_bytes()))
    except Exception as error:  # a model can do anything that a graph cannot hold
        log.warning("no CUDA graphs: a decode step cannot be captured", exc_info=True)
        why = in_a_line(error)
        return Captured(note=f"decode steps run without CUDA graphs, and slower, since capturing one failed ({why})")
