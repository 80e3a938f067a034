"""The chat template taken apart, conversations rendered by it, and windows packed with them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from twofour.prune.errors import TextError
from twofour.prune.text import chat
from twofour.prune.text.chat import Packing, template

SAID = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]


@pytest.fixture
def tokenizer(tiny_model_folder: Path) -> Any:
    """One token a byte; <|im_start|> is 1, <|im_end|> 2."""
    return AutoTokenizer.from_pretrained(tiny_model_folder)


def test_the_pieces_are_those_of_the_template(tokenizer: Any) -> None:
    found = template(tokenizer)
    whole = tokenizer.apply_chat_template(SAID, tokenize=False)
    why, so = (tokenizer(each["content"])["input_ids"] for each in SAID)
    assert [*found.opening, *why, *found.to_answer, *so, *found.closing] == tokenizer(whole)["input_ids"]
    assert tokenizer.decode(found.to_answer) == "<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer.decode(found.closing) == "<|im_end|>\n"
    assert found.special == {0, 1, 2} and chat.is_chat(tokenizer)


def test_a_system_prompt_of_the_template_stands_before_the_question(tokenizer: Any) -> None:
    tokenizer.chat_template = "<|im_start|>system\nBe kind.<|im_end|>\n" + tokenizer.chat_template
    assert tokenizer.decode(template(tokenizer).opening).startswith("<|im_start|>system\nBe kind.<|im_end|>\n")


def test_templates_that_cannot_be_followed(tokenizer: Any) -> None:
    for text, why in (
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}", "ends turns without a special token"),
        ("<|im_start|>{{ messages[0].content }}<|im_end|>", "does not repeat what was said"),
        ("{{ raise_exception('never') }}", r"template fails \(never\)"),
        (None, "has no chat template; calibrate on self"),
    ):
        tokenizer.chat_template = text
        with pytest.raises(TextError, match=why):
            template(tokenizer)
        assert not chat.is_chat(tokenizer)


def test_a_conversation_is_rendered_whole(tokenizer: Any) -> None:
    expected = tokenizer.apply_chat_template(SAID, tokenize=False)
    assert tokenizer.decode(chat.rendered(tokenizer, SAID, "line 1")) == expected
    for value in (None, [], "Why?", [{"role": "user"}], ["Why?"]):
        with pytest.raises(TextError, match="line 7 holds no conversation; give a list of"):
            chat.rendered(tokenizer, value, "line 7")
    tokenizer.chat_template = "{{ raise_exception('no system turn') }}"
    with pytest.raises(TextError, match=r"refuses the conversation at line 7 \(no system turn\); leave it out"):
        chat.rendered(tokenizer, SAID, "line 7")


def test_windows_begin_with_a_conversation_and_are_cut_at_their_end() -> None:
    packing = Packing(2, 5)
    for conversation, missing in (([1, 2, 3], 2), ([4, 5, 6], 1), ([7, 8], 1), ([9, 10, 11, 12], 0), ([13] * 9, 0)):
        packing.add(conversation)
        assert packing.missing == missing
    assert packing.windows.tolist() == packing.filled("x").tolist() == [[1, 2, 3, 4, 5], [7, 8, 9, 10, 11]]


def test_too_few_conversations() -> None:
    packing = Packing(2, 3)
    assert packing.windows.shape == (0, 3) and packing.windows.dtype == torch.int64
    packing.add([1, 2, 3])
    with pytest.raises(TextError, match="of x fill 1 windows of 3 tokens, 2 are asked for; give more text"):
        packing.filled("x")
