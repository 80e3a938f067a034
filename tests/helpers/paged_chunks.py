"""Prefill chunks over a paged cache, and what attention gives for them by the rule itself."""

import torch
from torch import Tensor

from twofour.serve.engine.runners.paged import Layer, Part

BLOCK = 4
HEADS, KEY_HEADS, DIM, VALUE_DIM = 6, 2, 8, 8


def oracle(query: Tensor, keys: Tensor, values: Tensor, start: int, scale: float, window: int) -> Tensor:
    """Token by token, head by head, in float64."""
    rows, heads, _ = query.shape
    found = torch.zeros(rows, heads, values.shape[-1], dtype=torch.float64)
    for row in range(rows):
        last = start + row
        first = max(0, last - window + 1) if window else 0
        for head in range(heads):
            own = head // (heads // keys.shape[1])
            seen = keys[first : last + 1, own].double()
            weights = torch.softmax(seen @ query[row, head].double() * scale, 0)
            found[row, head] = weights @ values[first : last + 1, own].double()
    return found


def chunk(
    start: int, rows: int, dtype: torch.dtype, value_dim: int = VALUE_DIM, device: str = "cpu"
) -> tuple[Part, Layer, Tensor]:
    """A chunk whose blocks lie in the cache in reverse, and what is not its own NaN."""
    torch.manual_seed(start + rows)
    longest = start + rows
    count = -(-longest // BLOCK)
    keys = torch.full((count + 2, BLOCK, KEY_HEADS, DIM), torch.nan)
    values = torch.full((count + 2, BLOCK, KEY_HEADS, value_dim), torch.nan)
    table = torch.arange(count - 1, -1, -1)
    keys[table], values[table] = (
        torch.randn(count, BLOCK, KEY_HEADS, DIM),
        torch.randn(count, BLOCK, KEY_HEADS, value_dim),
    )
    part = Part(slice(0, rows), table.to(device), [start], longest)
    new = {"dtype": dtype, "device": device}
    return part, Layer(keys.to(**new), values.to(**new)), torch.randn(rows, HEADS, DIM).to(**new)


def expected(part: Part, layer: Layer, query: Tensor, window: int) -> Tensor:
    keys, values = (cache[part.table].flatten(0, 1).cpu() for cache in (layer.keys, layer.values))
    return oracle(query.cpu(), keys, values, part.starts[0], 0.3, window)


# start, rows, window
CHUNKS = [(0, 9, 0), (0, 9, 20), (7, 6, 0), (30, 5, 0), (7, 6, 13), (7, 6, 12), (30, 5, 3), (0, 9, 4), (3, 9, 1)]
