from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from small_models import SMALL
from torch import Tensor
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from twofour.prune.errors import ModelError
from twofour.serve.engine.runners import Chunk, paged, tiles
from twofour.serve.engine.runners.generic import GenericRunner, attention_layers
from twofour.serve.engine.runners.paged import SHORT, Split, length_groups

SIZE = 4
# Caps so low that scores and logits reach them; every other layer has a window; and the cap needs eager attention.
GEMMA2: dict[str, Any] = {
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 5,
    "attn_logit_softcapping": 0.5,
    "final_logit_softcapping": 2.0,
    "attn_implementation": "eager",
}
FAMILIES: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "long llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL | {"max_position_embeddings": 1024})),
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SMALL)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SMALL, head_dim=16)),
    "mistral, windowed": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=5)),
    "gemma2": lambda: Gemma2ForCausalLM(Gemma2Config(**SMALL, **GEMMA2)),
    "gpt2": lambda: GPT2LMHeadModel(GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4, n_positions=128)),
}


@pytest.fixture(params=[tiles.parts, paged.parts], ids=["as on a CPU", "as on a GPU"], autouse=True)
def split(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Split:
    """Everything here is true of both ways to attend."""
    monkeypatch.setattr(tiles, "parts", request.param)
    chosen: Split = request.param
    return chosen


def build(family: str) -> tuple[Any, Any, GenericRunner]:
    """A model, its twin over paged attention, and the runner of the twin."""
    torch.manual_seed(0)
    model = FAMILIES[family]().eval()
    twin = FAMILIES[family]().eval()
    twin.load_state_dict(model.state_dict())
    return model, twin, GenericRunner(twin, attention_layers(twin), 240, SIZE)


def tokens(length: int, first: int) -> list[int]:
    return [(5 * i + first) % 64 for i in range(length)]


def part(chunk: Chunk, start: int, stop: int) -> Chunk:
    prompt = max(0, min(stop, chunk.prompt) - start)
    return Chunk(chunk.tokens[start:stop], start, chunk.blocks, range(stop - start), prompt)


@torch.inference_mode()
def own_logits(model: Any, prompt: list[int]) -> Tensor:
    logits: Tensor = model(torch.tensor([prompt])).logits[0]
    return logits


@pytest.mark.parametrize("family", FAMILIES)
def test_any_mix_of_chunks_gives_the_logits_of_the_model(family: str) -> None:
    """Two steps of everything at once: decodes of different lengths, first and later chunks, out of order."""
    model, _, runner = build(family)
    lengths = [9, 1, 17, 6, 12]
    prompts = [tokens(length, 11 * i) for i, length in enumerate(lengths)]
    cuts = [8, 0, 16, 2, 0]  # what the first step computes of each
    blocks = [[i + 5 * j for j in range(5)] for i in range(len(lengths))]  # interleaved
    sampled = [3, 0, 1, 4, 12]  # of the last tokens of each
    whole = [Chunk(p, 0, b, range(len(p)), len(p) - n) for p, b, n in zip(prompts, blocks, sampled, strict=True)]
    first = [part(chunk, 0, cut) for chunk, cut in zip(whole, cuts, strict=True) if cut]
    second = [part(chunk, cut, len(chunk.tokens)) for chunk, cut in zip(whole, cuts, strict=True)]
    logits = [own_logits(model, prompt) for prompt in prompts]
    expected_first = torch.cat([own[:cut] for own, cut in zip(logits, cuts, strict=True)])
    expected_second = torch.cat([own[cut:] for own, cut in zip(logits, cuts, strict=True)])
    torch.testing.assert_close(runner.forward(first), expected_first, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(runner.forward(second), expected_second, rtol=1e-4, atol=1e-4)


def test_only_wanted_logits_are_returned() -> None:
    model, _, runner = build("llama")
    prompt = tokens(8, 0)
    assert runner.forward([Chunk(prompt[:6], 0, [0, 1], range(0))]).shape == (0, 64)
    rest = runner.forward([Chunk(prompt[6:], 6, [0, 1], range(1, 2))])
    torch.testing.assert_close(rest, own_logits(model, prompt)[-1:], rtol=1e-4, atol=1e-4)


def test_long_and_short_sequences_decode_together() -> None:
    """Far enough apart in length that they are attended in different groups."""
    model, _, runner = build("long llama")
    prompts = [tokens(n, 3 * n) for n in (7, 700, 200)]
    blocks = [range(0, 2), range(2, 177), range(177, 227)]
    runner.forward([Chunk(p[:-1], 0, b, range(0), len(p) - 1) for p, b in zip(prompts, blocks, strict=True)])
    last = [Chunk(p[-1:], len(p) - 1, b, range(1)) for p, b in zip(prompts, blocks, strict=True)]
    expected = torch.stack([own_logits(model, prompt)[-1] for prompt in prompts])
    torch.testing.assert_close(runner.forward(last), expected, rtol=1e-4, atol=1e-4)


def test_what_another_request_left_in_the_cache_does_not_matter() -> None:
    model, _, runner = build("llama")
    for layer in runner.layers.values():
        layer.keys.fill_(torch.nan)
        layer.values.fill_(torch.nan)
    short, long = tokens(3, 0), tokens(14, 9)
    runner.forward([Chunk(short[:2], 0, [7], range(0)), Chunk(long[:13], 0, [3, 9, 1, 0], range(0))])
    logits = runner.forward([Chunk(short[2:], 2, [7], range(1)), Chunk(long[13:], 13, [3, 9, 1, 0], range(1))])
    expected = torch.stack([own_logits(model, short)[-1], own_logits(model, long)[-1]])
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_verify_accepts_what_is_right(family: str) -> None:
    build(family)[2].verify()


def test_verify_refuses_a_cache_that_is_read_wrongly(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, runner = build("llama")
    right = paged.gathered
    for module in (paged, tiles):
        monkeypatch.setattr(module, "gathered", lambda *cache: right(*cache).roll(1, 2))
    with pytest.raises(ModelError, match=r"LlamaForCausalLM cannot be served: .* differ by"):
        runner.verify()


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (
            lambda: MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2)),
            "MambaForCausalLM",
        ),
        (
            lambda: BloomForCausalLM(BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4)),
            "BloomForCausalLM",
        ),
    ],
)
def test_what_this_attention_cannot_do_is_refused_by_name(model: Callable[[], Any], why: str) -> None:
    with pytest.raises(ModelError, match=why):
        attention_layers(model().eval())


@given(st.lists(st.integers(1, 4000), max_size=30).map(sorted))
def test_groups_cover_all_and_pad_at_most_twofold(lengths: list[int]) -> None:
    groups = length_groups(lengths)
    assert [i for group in groups for i in group] == list(range(len(lengths)))
    for group in groups:
        assert lengths[group[-1]] <= max(2 * lengths[group[0]], SHORT)
