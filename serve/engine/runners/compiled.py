"""Attention of one step on a CPU by the compiled kernel, for models whose other parts transformers computes.

The cache lies as that kernel reads it, and no block is gathered or zeroed. Every token attends by itself, in an order
of additions that follows from its position, whether it is of a prompt or sampled: what tiles.py promises holds here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from twofour.serve.engine.runners import Chunk
from twofour.serve.engine.runners.attention import LayerShape, Rule
from twofour.serve.engine.runners.paged import positions, row
from twofour.serve.kernels.cpu.attention import LayerCache, takes
from twofour.serve.kernels.cpu.step import Chunks

CPU = torch.device("cpu")


def fits(model: Any, shapes: Mapping[int, LayerShape], block_size: int) -> bool:
    """Whether the kernel attends for all layers of a model."""
    dims = {dim for shape in shapes.values() for dim in (shape.key_dim, shape.value_dim)}
    same = all(shape.key_dim == shape.value_dim for shape in shapes.values())
    return model.device.type == "cpu" and same and all(takes(dim, block_size, model.dtype) for dim in dims)


def caches(shapes: Mapping[int, LayerShape], blocks: int, block_size: int) -> dict[int, LayerCache]:
    return {index: LayerCache(blocks, block_size, shape.heads, shape.key_dim) for index, shape in shapes.items()}


@dataclass(frozen=True)
class CompiledStep:
    """The chunks of one step, one after the other. Handed through the model to its attention layers."""

    layers: dict[int, LayerCache]
    tokens: Tensor  # [1, flat]
    positions: Tensor  # [1, flat]
    wanted: Tensor  # [wanted] flat indices, in the order of the chunks
    chunks: Chunks

    def attend(self, layer_index: int, query: Tensor, key: Tensor, value: Tensor, rule: Rule) -> Tensor:
        """Store keys and values [1, key heads, flat, dim], then attend [1, heads, flat, dim], flat first."""
        query, key, value = (each[0].transpose(0, 1) for each in (query, key, value))
        layer = self.layers[layer_index]
        return layer.attend(self.chunks, query, key, value, rule.scale, rule.window, rule.softcap)[None]


def lay_out(chunks: Sequence[Chunk], layers: dict[int, LayerCache]) -> CompiledStep:
    return CompiledStep(
        layers=layers,
        tokens=row([token for chunk in chunks for token in chunk.tokens], CPU)[None],
        positions=row([position for chunk in chunks for position in positions(chunk)], CPU)[None],
        wanted=row(_wanted(chunks), CPU),
        chunks=Chunks((chunk.start, len(chunk.tokens), chunk.blocks) for chunk in chunks),
    )


def _wanted(chunks: Sequence[Chunk]) -> list[int]:
    firsts = accumulate((len(chunk.tokens) for chunk in chunks), initial=0)
    return [first + offset for first, chunk in zip(firsts, chunks, strict=False) for offset in chunk.wanted]
