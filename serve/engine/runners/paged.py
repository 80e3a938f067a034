"""Attention of one step over paged keys and values.

The tokens of all chunks are one flat batch, so that every linear gets them at once; only attention takes them apart.

    flat     [ decode, decode, ... by length | prefill chunk | prefill chunk | ... ]
    cache    per layer two tensors [blocks, size, key heads, head dim]; slot = block * size + offset

On a GPU, sequences that decode are attended in groups of similar length: their blocks are gathered to [group,
longest, ...] and the part behind the end of a sequence is masked. A prefill chunk is attended alone. A CPU does it in
another way, and tiles.py says why. A gathered row holds only blocks of its own sequence, and a block is zeroed when a
sequence enters it: it may hold NaN from another request, and NaN times a weight of zero is NaN.

`Bounded` attends in shapes that depend on no length, for steps that are captured once (graphs.py).
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right

from twofour.serve.engine.runners import Chunk
from twofour.serve.engine.runners.attention import Rule, decode, hiding, prefill

SHORT = 256  # up to this length, padding costs less than another group


@dataclass(frozen=True)
class Layer:
    """The cache of one attention layer."""

    keys: Tensor  # [blocks, size, key heads, head dim]
    values: Tensor  # [blocks, size, key heads, value dim]


class Attending(Protocol):
    """Rows of the flat batch attended together."""

    @property
    def rows(self) -> slice: ...

    def attend(self, query: Tensor, layer: Layer, rule: Rule) -> Tensor:
        """Attend [rows, heads, dim] to the cached tokens of the sequences -> [rows, heads, value dim]."""


def length_groups(lengths: Sequence[int]) -> list[range]:
    """Split ascending lengths where a group's shortest would be padded to more than twice its length."""
    groups, stop = [], len(lengths)
    while stop:
        longest = lengths[stop - 1]
        start = next(i for i, length in enumerate(lengths) if longest <= max(2 * length, SHORT))
        groups.append(range(start, stop))
        stop = start
    return groups[::-1]


@dataclass
class Part:
    """Rows of the flat batch attended together: one chunk, or one token each of several sequences."""

    rows: slice
    table: Tensor  # [sequences * blocks] blocks to gather
    starts: list[int]  # [sequences] position of the first new token
    longest: int  # tokens up to and including the new ones
    masks: dict[tuple[int, torch.dtype], Tensor | None] = field(default_factory=dict)  # by window

    def attend(self, query: Tensor, layer: Layer, rule: Rule) -> Tensor:
        count, rows = len(self.starts), len(query)
        keys, values = self._gather(layer.keys), self._gather(layer.values)
        mask = self._mask(rows // count, rule.window, query)
        if count == rows:
            return decode(query, keys, values, mask, rule)
        seen = self._first_seen(rule.window)
        return prefill(query, keys[:, :, seen:], values[:, :, seen:], mask, rule)

    def _gather(self, cache: Tensor) -> Tensor:  # -> [sequences, key heads, longest, dim]
        return gathered(cache, self.table, len(self.starts))[:, :, : self.longest]

    def _first_seen(self, window: int) -> int:
        """Of one chunk: the tokens before are outside the windows of all its tokens."""
        return max(0, self.starts[0] - window + 1) if window else 0

    def _sees_all(self, window: int) -> bool:
        """No sequence of a decoding group is padded or longer than its window."""
        return min(self.starts) == self.longest - 1 and self.longest <= (window or self.longest)

    def _mask(self, tokens: int, window: int, query: Tensor) -> Tensor | None:
        """What to add to the scores [sequences, 1, tokens, seen]; the layers of one window share it."""
        key = (window, query.dtype)
        if key not in self.masks:
            self.masks[key] = self._new_mask(tokens, window, query)
        return self.masks[key]

    def _new_mask(self, tokens: int, window: int, query: Tensor) -> Tensor | None:
        if tokens == 1:
            return None if self._sees_all(window) else self._hidden(tokens, window, query, 0)
        if self.longest > (window or self.longest):
            return self._hidden(tokens, window, query, self._first_seen(window))
        if self.longest == tokens:
            return None
        return self._hidden(tokens, 0, query, 0) if query.is_cpu else causal_lower_right(tokens, self.longest)

    def _hidden(self, tokens: int, window: int, query: Tensor, seen: int) -> Tensor:
        starts = torch.tensor(self.starts, device=query.device) - seen
        at = (starts[:, None] + torch.arange(tokens, device=query.device))[:, None, :, None]
        return hiding(at, self.longest - seen, window, query.dtype)


@dataclass
class Bounded:
    """Single tokens, each attended alone. What they attend to is in tensors; only their shapes are fixed."""

    rows: slice
    table: Tensor  # [sequences, blocks] blocks to gather; one row if all tokens are of one sequence
    positions: Tensor  # [tokens] where they stand
    masks: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict)  # by window

    def attend(self, query: Tensor, layer: Layer, rule: Rule) -> Tensor:
        table, count = self.table.flatten(), len(self.table)
        keys, values = (
            gathered(cache, table, count).expand(len(self.positions), -1, -1, -1)
            for cache in (layer.keys, layer.values)
        )
        key = (rule.window, query.dtype)
        if key not in self.masks:
            self.masks[key] = hiding(self.positions[:, None, None, None], keys.shape[2], rule.window, query.dtype)
        return decode(query, keys, values, self.masks[key], rule)


def gathered(cache: Tensor, table: Tensor, sequences: int) -> Tensor:  # -> [sequences, key heads, tokens, dim]
    return cache.index_select(0, table).view(sequences, -1, *cache.shape[2:]).transpose(1, 2)


@dataclass(frozen=True)
class Step:
    """The chunks of one step, laid out flat. Handed through the model to its attention layers."""

    layers: dict[int, Layer]
    tokens: Tensor  # [1, flat]
    positions: Tensor  # [1, flat]
    slots: Tensor  # [flat] where the new keys and values go
    wanted: Tensor  # [wanted] flat indices, in the order of the chunks as given
    parts: Sequence[Attending]

    def attend(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Store keys and values [1, key heads, flat, dim], then attend [1, heads, flat, dim], flat first."""
        layer = self.layers[layer_index]
        layer.keys.flatten(0, 1).index_copy_(0, self.slots, key[0].transpose(0, 1))
        layer.values.flatten(0, 1).index_copy_(0, self.slots, value[0].transpose(0, 1))
        query = query[0].transpose(0, 1)  # [flat, heads, dim]
        attended = [part.attend(query[part.rows], layer, rule) for part in self.parts]
        return (attended[0] if len(attended) == 1 else torch.cat(attended))[None]


Split = Callable[[list[Chunk], int, torch.device], Iterator[Attending]]  # flat chunks -> their parts, in order


def lay_out(chunks: Sequence[Chunk], layers: dict[int, Layer], size: int, device: torch.device, split: Split) -> Step:
    """Flatten chunks, decodes first and by length, and zero the blocks that they enter."""
    order = sorted(range(len(chunks)), key=lambda i: (not chunks[i].decodes, chunks[i].start))
    flat = [chunks[i] for i in order]
    if entered := [block for chunk in flat for block in _entered(chunk, size)]:
        zero(layers, row(entered, device))
    firsts, first = [0] * len(chunks), 0
    for i in order:
        firsts[i], first = first, first + len(chunks[i].tokens)
    wanted = [firsts[i] + offset for i, chunk in enumerate(chunks) for offset in chunk.wanted]
    slots = [chunk.blocks[p // size] * size + p % size for chunk in flat for p in positions(chunk)]
    return Step(
        layers=layers,
        tokens=row([token for chunk in flat for token in chunk.tokens], device)[None],
        positions=row([p for chunk in flat for p in positions(chunk)], device)[None],
        slots=row(slots, device),
        wanted=row(wanted, device),
        parts=list(split(flat, size, device)),
    )


def positions(chunk: Chunk) -> range:
    return range(chunk.start, chunk.start + len(chunk.tokens))


def _entered(chunk: Chunk, size: int) -> Sequence[int]:
    return held(chunk, size)[-(-chunk.start // size) :]


def held(chunk: Chunk, size: int) -> Sequence[int]:
    """The blocks with tokens in them, the new ones included. The sequence may have more, for the rest of its prompt."""
    return chunk.blocks[: -(-(chunk.start + len(chunk.tokens)) // size)]


def table(chunk: Chunk, count: int, size: int) -> list[int]:
    """The blocks to gather for a chunk, `count` of them; its last is repeated at the end, and masked there."""
    own = held(chunk, size)[:count]
    return [*own, *[own[-1]] * (count - len(own))]


def row(numbers: list[int], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=device)


def zero(layers: dict[int, Layer], blocks: Tensor) -> None:
    """Write zeros into blocks [blocks]."""
    for layer in layers.values():
        layer.keys.index_fill_(0, blocks, 0)
        layer.values.index_fill_(0, blocks, 0)


def parts(flat: list[Chunk], size: int, device: torch.device) -> Iterator[Part]:
    decodes = [chunk for chunk in flat if chunk.decodes]
    for group in length_groups([chunk.start + 1 for chunk in decodes]):
        yield _part(decodes[group.start : group.stop], slice(group.start, group.stop), size, device)
    first = len(decodes)
    for chunk in flat[len(decodes) :]:
        yield _part([chunk], slice(first, first + len(chunk.tokens)), size, device)
        first += len(chunk.tokens)


def _part(chunks: list[Chunk], rows: slice, size: int, device: torch.device) -> Part:
    longest = max(chunk.start + len(chunk.tokens) for chunk in chunks)
    blocks = [block for chunk in chunks for block in table(chunk, -(-longest // size), size)]
    return Part(rows, row(blocks, device), [chunk.start for chunk in chunks], longest)
