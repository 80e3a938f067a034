"""Sampling many texts at once on a CPU, with `attention` in a third of the time of `generate`.

The cache is allocated once for the whole length: growing it copies everything at every token. Sliding-window layers
keep their own.
"""

import inspect
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):  # type: ignore[misc]
    """The keys and values of one layer in memory allocated once."""

    def __init__(self, length: int) -> None:
        super().__init__()
        self._length = length

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        super().lazy_initialization(key_states, value_states)
        batch, heads, _, width = key_states.shape
        self._all_keys = key_states.new_empty(batch, heads, self._length, width)
        self._all_values = value_states.new_empty(batch, heads, self._length, value_states.shape[-1])

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start = self.get_seq_length()
        stop = start + key_states.shape[-2]
        self._all_keys[:, :, start:stop] = key_states
        self._all_values[:, :, start:stop] = value_states
        self.keys, self.values = self._all_keys[:, :, :stop], self._all_values[:, :, :stop]
        return self.keys, self.values


def roomy_cache(model: nn.Module, length: int) -> DynamicCache:
    """Return an empty cache whose full-attention layers have room for `length` tokens."""
    cache = DynamicCache(config=model.config)
    cache.layers = [RoomyLayer(length) if type(layer) is DynamicLayer else layer for layer in cache.layers]
    return cache


def with_cache(model: nn.Module, cache: DynamicCache) -> dict[str, Any]:
    """The argument by which a model takes its cache: `cache` since transformers 5.24, `past_key_values` before."""
    named = inspect.signature(model.forward).parameters
    return {"cache" if "cache" in named else "past_key_values": cache}


def draw(logits: Tensor, generator: torch.Generator) -> Tensor:  # [batch, vocabulary] -> int64 [batch, 1]
    """Sample at temperature 1.0, untruncated: a uniform number looked up in the summed probabilities."""
    sums = logits.float().softmax(-1).cumsum(-1)
    uniform = torch.rand(len(logits), 1, generator=generator).to(sums.device)
    drawn = torch.searchsorted(sums, uniform * sums[:, -1:], right=True)  # right: never a token of probability 0
    return drawn.clamp(max=logits.shape[-1] - 1)
