"""Conversations: what the template forces, what the model writes, and templates that cannot be followed."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from twofour.prune.errors import TextError
from twofour.prune.text import corpus
from twofour.prune.text.chat import Conversation, Template, template

TEMPLATE = Template([1, 50], [2, 60, 61], [2, 70], frozenset({0, 1, 2}))


@pytest.fixture
def tokenizer(tiny_model_folder: Path) -> Any:
    """One token a byte; <|im_start|> is 1, <|im_end|> 2."""
    return AutoTokenizer.from_pretrained(tiny_model_folder)


def test_turns_end_with_any_special_token_and_the_template_goes_on() -> None:
    conversation = Conversation(TEMPLATE)
    drawn = [8, 7, 2, 9, 9, 6, 5, 0, 9, 4, 1, 9, 9]
    expected = [50, 7, 2, 60, 61, 6, 5, 2, 70, 4, 2, 60, 61]  # what is drawn where a token is forced is dropped
    assert [conversation.take(token) for token in drawn] == expected


def test_an_empty_turn() -> None:
    conversation = Conversation(TEMPLATE)
    taken = [conversation.take(token) for token in (9, 2, 9, 9, 2, 9, 3)]
    assert taken == [50, 2, 60, 61, 2, 70, 3]


def test_the_pieces_are_those_of_the_template(tokenizer: Any) -> None:
    found = template(tokenizer)
    said = [{"role": role, "content": "x"} for role in ("user", "assistant", "user")]
    whole = tokenizer.apply_chat_template(said, tokenize=False)
    x = tokenizer("x")["input_ids"]
    assert found.opening + x + found.to_answer + x + found.to_question + x == tokenizer(whole)["input_ids"][:-2]
    assert tokenizer.decode(found.to_answer) == "<|im_end|>\n<|im_start|>assistant\n"
    assert found.special == {0, 1, 2}


def test_conversations_of_a_model_follow_the_template(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(logits: Tensor, generator: torch.Generator) -> Tensor:  # one in four is a special token
        return torch.randint(12, (len(logits), 1), generator=generator)

    monkeypatch.setattr(corpus, "draw", draw)
    monkeypatch.setattr(corpus, "BATCH_TOKENS", 200)  # two at a time
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=320, max_position_embeddings=128, **shape)).eval()
    ids = corpus.chat_sampled(model, tokenizer, 5, 100, 0)
    assert ids.shape == (5, 100) and torch.equal(ids, corpus.chat_sampled(model, tokenizer, 5, 100, 0))
    assert len({tuple(row) for row in ids.tolist()}) == 5
    pieces = template(tokenizer)
    for row in ids.tolist():
        assert row[: len(pieces.opening)] == pieces.opening
        ends = [at for at, token in enumerate(row) if token == 2]
        assert len(ends) >= 4
        for at, turn in zip(ends, itertools.cycle((pieces.to_answer, pieces.to_question)), strict=False):
            assert row[at : at + len(turn)] == turn[: 100 - at]


def test_templates_that_cannot_be_followed(tokenizer: Any) -> None:
    tokenizer.chat_template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    with pytest.raises(TextError, match="ends turns without a special token"):
        template(tokenizer)
    tokenizer.chat_template = "<|im_start|>{{ messages[0].content }}<|im_end|>"
    with pytest.raises(TextError, match="does not repeat what was said"):
        template(tokenizer)
    tokenizer.chat_template = None
    with pytest.raises(TextError, match="has no chat template; calibrate on self"):
        template(tokenizer)


def test_no_room_for_a_turn(tokenizer: Any) -> None:
    with pytest.raises(TextError, match="takes 6 tokens before the first turn, a sample has 6; give a greater length"):
        corpus.chat_sampled(torch.nn.Linear(1, 1), tokenizer, 1, 6, 0)
