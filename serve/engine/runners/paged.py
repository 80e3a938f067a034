"""Attention of one step over paged keys and values.

The tokens of all chunks are one flat batch, so that every linear sees them at once; only attention takes them
apart.

    flat     [ decode, decode, ... by length | prefill chunk | prefill chunk | ... ]
    cache    per layer two tensors [blocks, size, key heads, head dim]; slot = block * size + offset

Sequences that decode are attended in groups of similar length: their blocks are gathered to [group, longest,
...] and what is longer than a sequence is masked. A prefill chunk is attended alone. A gathered row holds
blocks of its own sequence only, and a block is zeroed when a sequence enters it: what another request left
there, NaN for instance, which a weight of zero does not stop, never gets near it.

On a GPU torch has kernels that never hold all scores, and one that does ("math"), which takes what the others refuse,
as a mask together with heads that share keys. A chunk of 512 tokens after 32,000 would take gigabytes there. So what is
causal is asked for without a mask, and where that is not enough every head is given keys of its own.

`Bounded` attends the same in shapes that depend on no length, for steps that are captured once (graphs.py).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn.attention.bias import CausalBias, causal_lower_right

from twofour.serve.engine.runners import Chunk

SHORT = 256  # below this length a longer padding costs less than another group


@dataclass(frozen=True)
class Layer:
    """The cache of one attention layer."""

    keys: Tensor  # [blocks, size, key heads, head dim]
    values: Tensor  # [blocks, size, key heads, value dim]


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

    def attend(self, query: Tensor, layer: Layer, scale: float, window: int) -> Tensor:
        """Attend [rows, heads, dim] to the cached tokens of the sequences -> [rows, heads, value dim]."""
        count, rows = len(self.starts), len(query)
        keys, values = self._gather(layer.keys), self._gather(layer.values)
        mask = self._mask(rows // count, window, query)
        if count == rows:
            return _decode(query, keys, values, mask, scale)
        seen = self._first_seen(window)
        return _prefill(query, keys[:, :, seen:], values[:, :, seen:], mask, scale)

    def _gather(self, cache: Tensor) -> Tensor:  # -> [sequences, key heads, longest, dim]
        return _gathered(cache, self.table, len(self.starts))[:, :, : self.longest]

    def _first_seen(self, window: int) -> int:
        """Of one chunk: what lies before is out of the window of all its tokens."""
        return max(0, self.starts[0] - window + 1) if window else 0

    def _sees_all(self, window: int) -> bool:
        """No sequence of a decoding group is padded or longer than its window."""
        return min(self.starts) == self.longest - 1 and self.longest <= (window or self.longest)

    def _mask(self, tokens: int, window: int, query: Tensor) -> Tensor | None:
        """What to add to the scores [sequences, 1, tokens, seen]: one for all layers of this window."""
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
        return _hiding(at, self.longest - seen, window, query.dtype)


@dataclass
class Bounded:
    """One token each of several sequences. What they attend to is read from tensors, whose shapes are all it knows."""

    rows: slice
    table: Tensor  # [sequences, blocks] blocks to gather
    positions: Tensor  # [sequences] of the new tokens
    masks: dict[tuple[int, torch.dtype], Tensor] = field(default_factory=dict)  # by window

    def attend(self, query: Tensor, layer: Layer, scale: float, window: int) -> Tensor:
        """Attend [rows, heads, dim] to the cached tokens of the sequences -> [rows, heads, value dim]."""
        table, count = self.table.flatten(), len(self.positions)
        keys, values = _gathered(layer.keys, table, count), _gathered(layer.values, table, count)
        key = (window, query.dtype)
        if key not in self.masks:
            self.masks[key] = _hiding(self.positions[:, None, None, None], keys.shape[2], window, query.dtype)
        return _decode(query, keys, values, self.masks[key], scale)


def _gathered(cache: Tensor, table: Tensor, sequences: int) -> Tensor:  # -> [sequences, key heads, tokens, dim]
    return cache.index_select(0, table).view(sequences, -1, *cache.shape[2:]).transpose(1, 2)


def _decode(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """One token of each sequence: the heads that share a key head stand where its tokens stand in prefill."""
    grouped = torch.unflatten(query, 1, (keys.shape[1], -1))  # [sequences, key heads, heads / key heads, dim]
    return F.scaled_dot_product_attention(grouped, keys, values, mask, scale=scale).flatten(1, 2)


def _prefill(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, scale: float) -> Tensor:
    """The tokens of a chunk [rows, heads, dim], causal without a mask and by a CausalBias."""
    query = query.transpose(0, 1)[None]  # [1, heads, rows, dim]
    sharing = query.shape[1] // keys.shape[1]  # heads that share a key head
    shared = sharing > 1 and (query.is_cpu or (_is_causal(mask) and _flash_takes(query, keys, values)))
    if sharing > 1 and not shared:
        keys, values = (each.repeat_interleave(sharing, dim=1) for each in (keys, values))
    attended = F.scaled_dot_product_attention(
        query, keys, values, mask, scale=scale, is_causal=mask is None, enable_gqa=shared
    )
    return attended[0].transpose(0, 1)


def _is_causal(mask: Tensor | None) -> bool:
    return mask is None or isinstance(mask, CausalBias)


def _flash_takes(query: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Flash lets heads share keys, and needs 16 bits and one head dim; the others that hold no scores do not share."""
    return can_use_flash_attention(SDPAParams(query, keys, values, None, 0.0, False, True))


def _hiding(at: Tensor, longest: int, window: int, dtype: torch.dtype) -> Tensor:
    """Minus infinity where a token at `at` [sequences, 1, tokens, 1] does not see one of the `longest`, else 0."""
    of = torch.arange(longest, device=at.device)
    hidden = of > at  # [sequences, 1, tokens, longest]
    if window:
        hidden |= of <= at - window
    return torch.zeros(hidden.shape, dtype=dtype, device=at.device).masked_fill_(hidden, -torch.inf)


@dataclass(frozen=True)
class Step:
    """The chunks of one step, laid out flat. Handed through the model to its attention layers."""

    layers: dict[int, Layer]
    tokens: Tensor  # [1, flat]
    positions: Tensor  # [1, flat]
    slots: Tensor  # [flat] where the new keys and values go
    wanted: Tensor  # [wanted] flat indices, in the order of the chunks as given
    parts: list[Part] | list[Bounded]

    def attend(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor, scale: float, window: int) -> Tensor:
        """Store keys and values [1, key heads, flat, dim], then attend [1, heads, flat, dim], flat first."""
        layer = self.layers[layer_index]
        layer.keys.flatten(0, 1).index_copy_(0, self.slots, key[0].transpose(0, 1))
        layer.values.flatten(0, 1).index_copy_(0, self.slots, value[0].transpose(0, 1))
        query = query[0].transpose(0, 1)  # [flat, heads, dim]
        attended = [part.attend(query[part.rows], layer, scale, window) for part in self.parts]
        return (attended[0] if len(attended) == 1 else torch.cat(attended))[None]


def lay_out(chunks: Sequence[Chunk], layers: dict[int, Layer], size: int, device: torch.device) -> Step:
    """Flatten chunks, decodes first and by length, and zero the blocks that they enter."""
    order = sorted(range(len(chunks)), key=lambda i: (len(chunks[i].tokens) > 1, chunks[i].start))
    flat = [chunks[i] for i in order]
    if entered := [block for chunk in flat for block in _entered(chunk, size)]:
        zero(layers, _row(entered, device))
    firsts, first = [0] * len(chunks), 0
    for i in order:
        firsts[i], first = first, first + len(chunks[i].tokens)
    wanted = [firsts[i] + offset for i, chunk in enumerate(chunks) for offset in chunk.wanted]
    slots = [chunk.blocks[p // size] * size + p % size for chunk in flat for p in _positions(chunk)]
    return Step(
        layers=layers,
        tokens=_row([token for chunk in flat for token in chunk.tokens], device)[None],
        positions=_row([p for chunk in flat for p in _positions(chunk)], device)[None],
        slots=_row(slots, device),
        wanted=_row(wanted, device),
        parts=list(_parts(flat, size, device)),
    )


def _positions(chunk: Chunk) -> range:
    return range(chunk.start, chunk.start + len(chunk.tokens))


def _entered(chunk: Chunk, size: int) -> Sequence[int]:
    return _held(chunk, size)[-(-chunk.start // size) :]


def _held(chunk: Chunk, size: int) -> Sequence[int]:
    """The blocks with tokens in them, the new ones included; the rest of the prompt may have more already."""
    return chunk.blocks[: -(-(chunk.start + len(chunk.tokens)) // size)]


def _row(numbers: list[int], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64, device=device)


def zero(layers: dict[int, Layer], blocks: Tensor) -> None:
    """Empty blocks [blocks], in which there may be anything."""
    for layer in layers.values():
        layer.keys.index_fill_(0, blocks, 0)
        layer.values.index_fill_(0, blocks, 0)


def _parts(flat: list[Chunk], size: int, device: torch.device) -> Iterator[Part]:
    decodes = [chunk for chunk in flat if len(chunk.tokens) == 1]
    for group in length_groups([chunk.start + 1 for chunk in decodes]):
        yield _part(decodes[group.start : group.stop], slice(group.start, group.stop), size, device)
    row = len(decodes)
    for chunk in flat[len(decodes) :]:
        yield _part([chunk], slice(row, row + len(chunk.tokens)), size, device)
        row += len(chunk.tokens)


def _part(chunks: list[Chunk], rows: slice, size: int, device: torch.device) -> Part:
    longest = max(chunk.start + len(chunk.tokens) for chunk in chunks)
    table: list[int] = []
    for held in (_held(chunk, size) for chunk in chunks):
        table += [*held, *[held[-1]] * (-(-longest // size) - len(held))]
    return Part(rows, _row(table, device), [chunk.start for chunk in chunks], longest)
