"""Attention of queries to keys and values that are laid out for it.

On a GPU torch has kernels that never hold all scores, and one that does ("math"). That one takes what the others
refuse, for instance a mask together with heads that share keys; a chunk of 512 tokens after 32,000 would need gigabytes
there. So causal attention is asked for without a mask, and where that is not enough every head gets keys of its own.

Scores with a cap are computed here, all at once: torch's kernels know no cap.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.backends.cuda import SDPAParams, can_use_flash_attention
from torch.nn.attention.bias import CausalBias


@dataclass(frozen=True)
class LayerShape:
    """What one attention layer stores per token."""

    heads: int  # of keys
    key_dim: int
    value_dim: int
    window: int  # 0: unlimited
    softcap: float  # 0: unlimited

    @property
    def numbers_per_token(self) -> int:
        return self.heads * (self.key_dim + self.value_dim)


class Rule(NamedTuple):
    """How the tokens of a layer attend to each other."""

    scale: float  # of the scores
    window: int  # tokens, the attending one included; 0: unlimited
    softcap: float = 0.0  # scores stay between this and its negative; 0: unlimited


def attention(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, rule: Rule) -> Tensor:
    """Attend [batch, heads, rows, dim] to [batch, key heads, tokens, dim] -> [batch, heads, rows, value dim]."""
    if rule.softcap:
        return _capped(query, keys, values, mask, rule)
    shared = query.shape[1] != keys.shape[1]
    return F.scaled_dot_product_attention(query, keys, values, mask, scale=rule.scale, enable_gqa=shared)


def _capped(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, rule: Rule) -> Tensor:
    """In the order and the dtypes of transformers."""
    grouped = query.unflatten(1, (keys.shape[1], -1))  # [batch, key heads, heads / key heads, rows, dim]
    scores = grouped @ keys[:, :, None].mT * rule.scale
    scores = rule.softcap * torch.tanh(scores / rule.softcap)
    if mask is not None:
        scores = scores + mask[:, :, None]
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    return (weights @ values[:, :, None]).flatten(1, 2)


def decode(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, rule: Rule) -> Tensor:
    """One token of each sequence: the heads that share a key head take the place that tokens have in prefill."""
    grouped = torch.unflatten(query, 1, (keys.shape[1], -1))  # [sequences, key heads, heads / key heads, dim]
    return attention(grouped, keys, values, mask, rule).flatten(1, 2)


def prefill(query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None, rule: Rule) -> Tensor:
    """The tokens of a chunk [rows, heads, dim], causal without a mask and by a CausalBias."""
    query = query.transpose(0, 1)[None]  # [1, heads, rows, dim]
    if rule.softcap:
        return _capped(query, keys, values, _written_out(mask, query, keys), rule)[0].transpose(0, 1)
    sharing = query.shape[1] // keys.shape[1]  # heads that share a key head
    shared = sharing > 1 and (query.is_cpu or (_is_causal(mask) and _flash_takes(query, keys, values)))
    if sharing > 1 and not shared:
        keys, values = (each.repeat_interleave(sharing, dim=1) for each in (keys, values))
    attended = F.scaled_dot_product_attention(
        query, keys, values, mask, scale=rule.scale, is_causal=mask is None, enable_gqa=shared
    )
    return attended[0].transpose(0, 1)


def _is_causal(mask: Tensor | None) -> bool:
    return mask is None or isinstance(mask, CausalBias)


def _written_out(mask: Tensor | None, query: Tensor, keys: Tensor) -> Tensor:
    """The mask as numbers, a causal one too: the rows are the last tokens."""
    if mask is not None and not isinstance(mask, CausalBias):
        return mask
    tokens = keys.shape[2]
    at = torch.arange(tokens - query.shape[2], tokens, device=query.device)
    return hiding(at[None, None, :, None], tokens, 0, query.dtype)


def _flash_takes(query: Tensor, keys: Tensor, values: Tensor) -> bool:
    """Whether flash attention takes them: with it heads can share keys, in 16 bits, with one head dim."""
    return can_use_flash_attention(SDPAParams(query, keys, values, None, 0.0, False, True))


def hiding(at: Tensor, longest: int, window: int, dtype: torch.dtype) -> Tensor:
    """Minus infinity where a token at `at` [sequences, 1, tokens, 1] does not see one of the `longest`, else 0."""
    of = torch.arange(longest, device=at.device)
    hidden = of > at  # [sequences, 1, tokens, longest]
    if window:
        hidden |= of <= at - window
    return torch.zeros(hidden.shape, dtype=dtype, device=at.device).masked_fill_(hidden, -torch.inf)
