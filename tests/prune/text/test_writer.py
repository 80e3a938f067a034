"""Passages written by transformers: greedy against `generate`, ends, seeds, and texts side by side."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from twofour.prune.errors import InputError, NonFiniteError
from twofour.prune.progress import Step
from twofour.prune.text import plain
from twofour.prune.text.plain import PlainWriter
from twofour.prune.text.writer import Passage, seed_of


def llama(**changes: Any) -> Any:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "vocab_size": 300}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    spread = {"initializer_range": 0.3, "eos_token_id": None, "pad_token_id": 0}
    return LlamaForCausalLM(LlamaConfig(**(shape | heads | spread | changes))).eval()


PASSAGES = [Passage(tuple(range(3, 3 + length)), 20 - length, seed=length) for length in (1, 9, 4, 1, 12)]


def greedy(passages: Sequence[Passage]) -> list[Passage]:
    return [replace(passage, temperature=0.0) for passage in passages]


def test_greedy_text_is_that_of_generate() -> None:
    model = llama()
    written = PlainWriter(model).write(greedy(PASSAGES))
    for passage, text in zip(PASSAGES, written, strict=True):
        ids = torch.tensor([passage.prompt])
        mask = torch.ones_like(ids)
        expected = model.generate(ids, attention_mask=mask, max_new_tokens=passage.tokens, do_sample=False)
        assert text == expected[0, len(passage.prompt) :].tolist()


def test_a_text_depends_on_its_passage_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    writer = PlainWriter(llama())
    together = writer.write(PASSAGES)
    assert together == [writer.write([passage])[0] for passage in PASSAGES]
    assert together == writer.write(PASSAGES)
    others = writer.write([replace(passage, seed=passage.seed + 100) for passage in PASSAGES])
    assert all(text != other for text, other in zip(together, others, strict=True))
    monkeypatch.setattr(plain, "BATCH_TOKENS", 40)  # two at a time
    assert writer.write(PASSAGES) == together


def test_a_text_ends_with_what_ends_it() -> None:
    writer = PlainWriter(llama())
    (whole,) = writer.write([Passage((7,), 30, seed=1)])
    end = whole[11]
    passages = [Passage((7,), 30, 1, ends=frozenset({end})), Passage((7,), 30, 1), Passage((7,), 0, 1)]
    steps = list[Step]()
    cut, same, nothing = writer.write(passages, steps.append)
    assert cut == whole[: whole.index(end) + 1] and same == whole and nothing == []
    assert [step.done for step in steps] == sorted(step.done for step in steps) and steps[-1].done == 60
    assert {step.total for step in steps} == {60} and writer.write([]) == []


def test_what_does_not_fit_or_is_not_finite_is_refused() -> None:
    with pytest.raises(InputError, match="length 65 exceeds the model's context of 64"):
        PlainWriter(llama()).write([Passage((1, 2), 63, 0)])
    broken = llama()
    with torch.no_grad():
        broken.model.norm.weight[0] = float("nan")
    with pytest.raises(NonFiniteError, match="NaN or infinite at position 0 of its own text"):
        PlainWriter(broken).write([Passage((1, 2), 8, 0)])


def test_seeds_of_places_differ() -> None:
    places = [(0,), (1,), ("self", 0), ("self", 1), ("question", 0), ("chunk", 0)]
    seeds = [seed_of(seed, *place) for seed in (0, 1) for place in places]
    assert len(set(seeds)) == len(seeds) and all(0 <= seed < 2**63 for seed in seeds)
    assert seed_of(3, "self", 4) == seed_of(3, "self", 4)
