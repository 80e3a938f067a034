"""Attention on a CPU, in shapes that depend on the position of a token and on nothing else.

A matrix product adds in an order that depends on its shape. So the last bits of one token differ with the number of
tokens beside it, and with them, now and then, a text. Here tokens at the same position always get the same shape:

    prompt   by tiles of 64 positions, from 0 on, whatever chunks they come in. A tile has all its 64 rows, those that
             are not computed now are zero, and sees the keys up to its own end
    output   each token for itself, over the keys up to the next multiple of 16, those with as many of them together;
             also where it is computed again, after a preemption

What is not there is masked. So a token gets the same bits in one chunk or in several, alone or beside others, and with
keys that another prompt has left in the cache.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor

from twofour.serve.engine.runners import Chunk
from twofour.serve.engine.runners.attention import Rule, attention, hiding
from twofour.serve.engine.runners.paged import Attending, Bounded, Layer, gathered, row, table

TILE = 64  # positions of a prompt
STRIDE = 16  # the number of keys of a sampled token is filled up to a multiple of this


@dataclass
class Tiles:
    """A chunk of a prompt."""

    rows: slice
    table: Tensor  # [blocks] to gather, up to the end of the last tile
    start: int  # position of the first new token
    masks: dict[tuple[int, int, torch.dtype], Tensor] = field(default_factory=dict)  # by the tile's begin, and window

    def attend(self, query: Tensor, layer: Layer, rule: Rule) -> Tensor:
        """Attend [rows, heads, dim] to the cached tokens of the sequence -> [rows, heads, value dim]."""
        keys, values = (gathered(cache, self.table, 1) for cache in (layer.keys, layer.values))
        stop = self.start + len(query)
        begins = range(self.start // TILE * TILE, stop, TILE)
        return torch.cat([self._tile(begin, query, keys, values, rule) for begin in begins])

    def _tile(self, begin: int, query: Tensor, keys: Tensor, values: Tensor, rule: Rule) -> Tensor:
        end, stop = begin + TILE, self.start + len(query)
        first, last = max(begin, self.start), min(end, stop)
        rows = query[first - self.start : last - self.start].transpose(0, 1)  # [heads, rows, dim]
        whole = F.pad(rows, (0, 0, first - begin, end - last))[None]
        mask = self._mask(begin, rule.window, query.dtype)
        attended = attention(whole, keys[:, :, :end], values[:, :, :end], mask, rule)
        return attended[0, :, first - begin : last - begin].transpose(0, 1)

    def _mask(self, begin: int, window: int, dtype: torch.dtype) -> Tensor:  # [1, 1, tile, tokens up to its end]
        key = (begin, window, dtype)
        if key not in self.masks:
            at = torch.arange(begin, begin + TILE)[None, None, :, None]
            self.masks[key] = hiding(at, begin + TILE, window, dtype)
        return self.masks[key]


def parts(flat: list[Chunk], size: int, device: torch.device) -> Iterator[Attending]:
    """Split chunks, decodes first and by length, into parts that are attended together."""
    first = 0
    decodes = [chunk for chunk in flat if chunk.decodes]
    for count, together in groupby(decodes, lambda chunk: _blocks(chunk.start, STRIDE, size)):
        group = list(together)
        tables = row([block for chunk in group for block in table(chunk, count, size)], device).view(-1, count)
        yield Bounded(slice(first, first + len(group)), tables, row([chunk.start for chunk in group], device))
        first += len(group)
    for chunk in flat[len(decodes) :]:
        yield from _alone(chunk, first, size, device)
        first += len(chunk.tokens)


def _alone(chunk: Chunk, first: int, size: int, device: torch.device) -> Iterator[Attending]:
    """The part of a chunk that is prompt, and the part that is output and computed again."""
    sampled, stop = chunk.start + chunk.prompt, chunk.start + len(chunk.tokens)
    if chunk.prompt:
        blocks = row(table(chunk, _blocks(sampled - 1, TILE, size), size), device)
        yield Tiles(slice(first, first + chunk.prompt), blocks, chunk.start)
    for count, group in groupby(range(sampled, stop), lambda position: _blocks(position, STRIDE, size)):
        together = list(group)
        rows = slice(first + together[0] - chunk.start, first + together[-1] + 1 - chunk.start)
        yield Bounded(rows, row(table(chunk, count, size), device)[None], row(together, device))


def _blocks(position: int, step: int, size: int) -> int:
    """How many blocks hold all positions up to the next multiple of `step`."""
    end = (position // step + 1) * step
    return -(-end // size)
