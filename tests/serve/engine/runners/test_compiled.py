"""Whole models with compiled attention: their own logits, in any mix of chunks."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Gemma2Config, Gemma2ForCausalLM, PhiConfig, PhiForCausalLM

from twofour.serve.engine.runners import Chunk, choice, compiled
from twofour.serve.engine.runners.generic import GenericRunner, attention_layers, own_logits
from twofour.serve.kernels.cpu import extension

pytestmark = pytest.mark.skipif(bool(extension.missing()), reason=f"no CPU kernel: {extension.missing()}")
SMALL = {
    "vocab_size": 64,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
# A cap and a window so low that they are reached.
GEMMA2 = {"head_dim": 32, "query_pre_attn_scalar": 32, "sliding_window": 20, "attn_logit_softcapping": 0.5}
PROMPT = [(5 * i + 3) % 64 for i in range(90)]


def gemma2() -> Any:
    return Gemma2ForCausalLM(Gemma2Config(**SMALL, **GEMMA2, attn_implementation="eager"))


def phi() -> Any:
    return PhiForCausalLM(PhiConfig(**SMALL, eos_token_id=1))


def runner(family: Any) -> GenericRunner:
    torch.manual_seed(0)
    model = family().bfloat16().eval()
    shapes = attention_layers(model)
    assert compiled.fits(model, shapes, 16)
    return GenericRunner(model, shapes, 24, 16, is_compiled=True)


def theirs(one: GenericRunner, tokens: list[int]) -> Tensor:
    return own_logits(one.model, tokens, one._own_attention)[0].float()


@pytest.mark.parametrize("family", [gemma2, phi])
def test_any_mix_of_chunks_gives_the_logits_of_the_model(family: Any) -> None:
    one = runner(family)
    one.verify()
    first, second = range(0, 6), range(10, 16)
    one.forward([Chunk(PROMPT[:40], 0, first, range(0), 40), Chunk(PROMPT[20:52], 0, second, range(0), 32)])
    step = [
        Chunk(PROMPT[52:53], 32, second, range(1)),
        Chunk(PROMPT[40:90], 40, first, range(10, 50, 39), 50),
        Chunk(PROMPT[:7], 0, [20], range(6, 7), 7),
    ]
    found = one.forward(step).float()
    texts = [PROMPT[20:53], PROMPT[:51], PROMPT[:90], PROMPT[:7]]
    for logits, text in zip(found, texts, strict=True):
        expected = theirs(one, text)
        assert (logits - expected).norm() < 0.03 * expected.norm()
    assert one.forward([Chunk(PROMPT[:7], 0, [21], range(0), 7)]).shape == (0, 64)


def test_what_another_request_left_in_the_cache_does_not_matter() -> None:
    one = runner(gemma2)
    chunk = Chunk(PROMPT[:40], 0, [3, 1, 2], range(39, 40), 40)
    expected = one.forward([chunk])
    for layer in one._caches.values():  # type: ignore[union-attr]
        layer.numbers.fill_(torch.nan)
    assert torch.equal(one.forward([chunk]), expected)


def test_a_model_that_is_not_fused_gets_it_where_it_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    def built(model: Any, block_size: int) -> Any:
        one, _ = choice.choose(model.eval(), "auto", block_size).build(24, block_size, 128)
        return one

    torch.manual_seed(0)
    monkeypatch.setattr(choice, "has_tiles", lambda: False)
    assert built(gemma2().bfloat16(), 16)._caches
    assert built(gemma2().bfloat16(), 8)._caches is None
    assert built(gemma2(), 16)._caches is None
    monkeypatch.setattr(choice, "has_tiles", lambda: True)
    assert built(gemma2().bfloat16(), 16)._caches is None
