"""Causal attention on a CPU for sampling and training, in less time than torch's kernels take there.

Two cases are replaced in models whose attention is `sdpa`; all others still go to `sdpa`.

One new token a sequence: query heads that share keys are given to torch as so many queries of one head. Its own kernel
for shared keys reads the keys once for each query head, five times slower at 64 sequences. (Plain matrix products would
be quicker still, but oneDNN keeps code and scratch for every length it has seen: gigabytes.)

Whole texts: query heads that share keys are multiplied with them as one matrix, some rows at a time, and only with the
keys up to the last of these rows. Scores and their softmax are float32, as in torch's kernel. The weights are kept for
the backward pass where they are few; else they are computed again there (Dao et al., 2022, algorithm 4).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product, repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

ATTENTION = "twofour_quick"
NOT_PLAIN = ("softcap", "position_bias", "s_aux", "cache")
ROWS = 128  # of the queries of a head at a time
SAVED_BYTES = 32 << 20  # at most, of the weights of one layer, are kept for the backward pass

Place = tuple[int, int | slice, slice]  # sample, heads, tokens


@contextmanager
def quick_attention(model: nn.Module) -> Iterator[None]:
    """Let a model whose attention is `sdpa` attend quickly on a CPU."""
    before = model.config._attn_implementation  # type: ignore[union-attr]
    if before == "sdpa":
        AttentionInterface.register(ATTENTION, attention)
        AttentionMaskInterface.register(ATTENTION, sdpa_mask)
        model.set_attn_implementation(ATTENTION)  # type: ignore[operator]
    try:
        yield
    finally:
        if before == "sdpa":
            model.set_attn_implementation(before)  # type: ignore[operator]


def attention(
    module: nn.Module,
    query: Tensor,  # [samples, heads, queries, width]
    key: Tensor,  # [samples, key heads, tokens, width]
    value: Tensor,  # [samples, key heads, tokens, value width]
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[Tensor, None]:  # [samples, queries, heads, value width]
    """Attend; the signature is that of transformers' attention functions."""
    on_cpu = query.device.type == "cpu"
    plain = on_cpu and attention_mask is None and all(options.get(name) is None for name in NOT_PLAIN)
    if plain and query.shape[2] == 1:
        return one_query(query, key, value, scaling), None
    is_causal = options.get("is_causal", getattr(module, "is_causal", True)) is not False
    if plain and is_causal and query.shape[2] == key.shape[2]:
        return causal(query, key, value, scaling).transpose(1, 2), None
    result: tuple[Tensor, None] = sdpa_attention_forward(
        module, query, key, value, attention_mask, scaling=scaling, **options
    )
    return result


def one_query(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """Attend from the last token of each sample, [samples, heads, 1, width], to all: [samples, 1, heads, width]."""
    packed = query.reshape(len(query), key.shape[1], -1, query.shape[-1])  # heads that share keys side by side
    mixed = nn.functional.scaled_dot_product_attention(packed, key, value, scale=scale)
    return mixed.reshape(len(query), 1, query.shape[1], value.shape[-1])


def causal(query: Tensor, key: Tensor, value: Tensor, scale: float | None = None) -> Tensor:
    """Attend from every token to those up to itself; shapes as in `attention`, the result [samples, heads, ...]."""
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    mixed: Tensor = _Causal.apply(query, key, value, scale)  # type: ignore[no-untyped-call]
    return mixed


class _Causal(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        mixed, kept = query.new_empty(*query.shape[:-1], value.shape[-1]), []
        few = any(ctx.needs_input_grad) and query[..., 0].nbytes * key.shape[2] <= SAVED_BYTES
        for own, seen in _places(query, key):
            weights = _weights(query[own], key[seen], scale)
            mixed[own] = weights @ value[seen]
            if few:
                kept.append(weights)
        ctx.save_for_backward(query, key, value, mixed, *kept)
        ctx.scale = scale
        return mixed

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        query, key, value, mixed, *kept = ctx.saved_tensors
        of_query, of_key, of_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for (own, seen), weights in zip(_places(query, key), kept or repeat(None), strict=False):
            weights = (_weights(query[own], key[seen], ctx.scale) if weights is None else weights).flatten(0, 1)
            slope = gradient[own].flatten(0, 1)
            of_value[seen] += weights.T @ slope
            of_scores = slope @ value[seen].T
            of_scores -= (slope * mixed[own].flatten(0, 1)).sum(-1, keepdim=True)
            of_scores *= weights
            of_scores *= ctx.scale
            of_query[own] = (of_scores @ key[seen]).view_as(query[own])
            of_key[seen] += of_scores.T @ query[own].flatten(0, 1)
        return of_query, of_key, of_value, None


def _places(query: Tensor, key: Tensor) -> Iterator[tuple[Place, Place]]:
    """Yield the queries to do next, some rows of the heads that share keys, and the keys that they see."""
    samples, heads, tokens, _ = query.shape
    shared = heads // key.shape[1]
    for sample, head, first in product(range(samples), range(key.shape[1]), range(0, tokens, ROWS)):
        last = min(first + ROWS, tokens)
        yield (sample, slice(head * shared, (head + 1) * shared), slice(first, last)), (sample, head, slice(0, last))


def _weights(query: Tensor, key: Tensor, scale: float) -> Tensor:  # [heads, rows, width], [tokens, width]
    """How much the last `rows` tokens attend to each token, [heads, rows, tokens]."""
    scores = (query.float() * scale) @ key.float().T
    rows = query.shape[1]
    scores[..., -rows:] += torch.full((rows, rows), float("-inf")).triu(1)
    return scores.softmax(-1).to(query.dtype)
