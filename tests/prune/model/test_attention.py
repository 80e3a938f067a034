"""Attention on a CPU against torch's, forwards and backwards."""

from collections.abc import Callable
from contextlib import nullcontext
from unittest.mock import patch

import pytest
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from twofour.prune.model import attention
from twofour.prune.model.attention import ROWS, causal, quick_attention

Results = tuple[Tensor, Tensor, Tensor, Tensor]


def brute_force(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """The definition, one matrix of scores for every head."""
    shared = query.shape[1] // key.shape[1]
    scores = query @ key.repeat_interleave(shared, 1).mT * scale
    ahead = torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)
    return scores.masked_fill(ahead, float("-inf")).softmax(-1) @ value.repeat_interleave(shared, 1)


def forwards_and_backwards(attend: Callable[..., Tensor], inputs: list[Tensor], scale: float) -> Results:
    leaves = [each.clone().requires_grad_(True) for each in inputs]
    mixed = attend(*leaves, scale)
    generator = torch.Generator().manual_seed(1)
    mixed.backward(torch.randn(mixed.shape, generator=generator).to(mixed))
    slopes = [leaf.grad for leaf in leaves if leaf.grad is not None]
    return mixed.detach(), slopes[0], slopes[1], slopes[2]


def inputs(tokens: int, heads: int = 6, key_heads: int = 2, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, tokens, 16), (2, key_heads, tokens, 16), (2, key_heads, tokens, 24)]
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize("kept_bytes", [0, 1 << 20], ids=["computed again", "kept"])
@pytest.mark.parametrize("tokens", [1, 7, ROWS, ROWS + 1, 2 * ROWS + 40])
def test_it_is_the_definition(tokens: int, kept_bytes: int) -> None:
    with patch.object(attention, "SAVED_BYTES", kept_bytes):
        found = forwards_and_backwards(causal, inputs(tokens), 0.3)
    for ours, wanted in zip(found, forwards_and_backwards(brute_force, inputs(tokens), 0.3), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("key_heads", [1, 3, 6])
def test_any_number_of_heads_may_share_keys(key_heads: int) -> None:
    found = forwards_and_backwards(causal, inputs(20, key_heads=key_heads), 0.25)
    for ours, wanted in zip(found, forwards_and_backwards(brute_force, inputs(20, 6, key_heads), 0.25), strict=True):
        torch.testing.assert_close(ours, wanted, rtol=1e-4, atol=1e-5)


def test_in_bfloat16_it_is_about_as_exact_as_torch() -> None:
    def torchs(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        key, value = key.repeat_interleave(3, 1), value.repeat_interleave(3, 1)
        return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)

    half = inputs(300, dtype=torch.bfloat16)
    wanted = forwards_and_backwards(brute_force, [each.double() for each in half], 0.25)
    ours, theirs = forwards_and_backwards(causal, half, 0.25), forwards_and_backwards(torchs, half, 0.25)
    for a, b, c in zip(ours, theirs, wanted, strict=True):
        assert (a.double() - c).norm() < 3 * (b.double() - c).norm()


def test_weights_are_kept_only_for_the_way_back() -> None:
    with patch.object(attention, "_weights", wraps=attention._weights) as computed:
        leaves = [each.requires_grad_(True) for each in inputs(10)]
        causal(*leaves).sum().backward()
        assert computed.call_count == 4  # two samples of two key heads, forwards
        with patch.object(attention, "SAVED_BYTES", 0):
            causal(*leaves).sum().backward()
        assert computed.call_count == 4 + 2 * 4
    with torch.no_grad():
        assert causal(*leaves).grad_fn is None


def model_logits(model: torch.nn.Module, ids: Tensor, quick: bool) -> tuple[Tensor, int]:
    manner = quick_attention(model) if quick else nullcontext()
    with patch.object(attention, "causal", wraps=attention.causal) as called, torch.no_grad(), manner:
        return model(input_ids=ids, use_cache=False).logits, called.call_count


SHAPE = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def test_a_model_attends_with_it_inside_and_with_sdpa_outside() -> None:
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE, num_key_value_heads=2)).eval()
    ids = torch.arange(60).view(2, 30)
    (wanted, none), (found, calls) = model_logits(model, ids, quick=False), model_logits(model, ids, quick=True)
    assert (none, calls) == (0, 2)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    assert model.config._attn_implementation == "sdpa"


def test_a_window_goes_to_sdpa() -> None:
    torch.manual_seed(0)
    model = MistralForCausalLM(MistralConfig(**SHAPE, num_key_value_heads=2, sliding_window=8)).eval()
    ids = torch.arange(60).view(2, 30)
    (wanted, _), (found, calls) = model_logits(model, ids, quick=False), model_logits(model, ids, quick=True)
    assert calls == 0 and torch.equal(found, wanted)
