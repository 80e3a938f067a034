import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace

from twofour.bench.traffic import conversations
from twofour.bench.traffic.conversations import Conversation, Turn
from twofour.prune.errors import InputError

SHAREGPT = {"id": "a", "conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "yes?"}]}
CHAT = {"messages": [{"role": "system", "content": "be short"}, {"role": "user", "content": "hi"}], "output_tokens": 7}


def read(tmp_path: Path, *entries: Any, as_list: bool = False) -> conversations.Conversations:
    text = json.dumps(entries) if as_list else "\n".join(map(json.dumps, entries)) + "\n\n"
    (tmp_path / "said.json").write_text(text)
    return conversations.read(tmp_path / "said.json")


@pytest.mark.parametrize("as_list", [True, False])
def test_three_kinds_of_entries(tmp_path: Path, as_list: bool) -> None:
    found = read(tmp_path, {"prompt": "what"}, CHAT, SHAREGPT, as_list=as_list)
    assert found.all == [
        Conversation(None, [Turn("what", None)]),
        Conversation("be short", [Turn("hi", None)], 7),
        Conversation(None, [Turn("hi", "yes?")]),
    ]
    assert (found.name, found.left_out) == ("said.json", 0)


def said(*turns: tuple[str, str]) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in turns]}


def test_the_last_turn_may_lack_its_answer(tmp_path: Path) -> None:
    found = read(tmp_path, said(("human", "a"), ("gpt", "b"), ("human", "c")), said(("user", "a"), ("assistant", "b")))
    assert [each.turns for each in found.all] == [[Turn("a", "b"), Turn("c", None)], [Turn("a", "b")]]


def test_what_is_no_conversation_is_left_out_and_counted(tmp_path: Path) -> None:
    broken = [
        said(("gpt", "b"), ("human", "a")),
        said(("human", "a"), ("human", "b")),
        said(("human", "a"), ("gpt", " ")),
        said(("human", "a"), ("gpt", "b"), ("system", "c")),
        said(("system", "a")),
        said(),
        {"prompt": ""},
    ]
    found = read(tmp_path, *broken, SHAREGPT)
    assert (len(found.all), found.left_out) == (1, 7)
    with pytest.raises(InputError, match="no prompt that can be sent"):
        read(tmp_path, *broken)


def test_texts_in_parts_are_put_together_and_pictures_refused(tmp_path: Path) -> None:
    def parts(*content: dict[str, Any]) -> dict[str, Any]:
        return {"messages": [{"role": "user", "content": list(content)}]}

    found = read(tmp_path, parts({"type": "text", "text": "a"}, {"type": "text", "text": "b"}))
    assert found.all[0].turns == [Turn("ab", None)]
    with pytest.raises(InputError, match="entry 1 holds more than text"):
        read(tmp_path, parts({"type": "image_url", "image_url": {}}))


@pytest.mark.parametrize(
    "entry",
    [
        {},
        {"text": "x"},
        {"messages": 3},
        {"messages": [{"role": "user"}]},
        {"conversations": [1]},
        5,
        "x",
        {"prompt": None},
        {"prompt": ["a"]},
    ],
)
def test_an_entry_that_cannot_be_read_is_named(tmp_path: Path, entry: Any) -> None:
    with pytest.raises(InputError, match="entry 2"):
        read(tmp_path, SHAREGPT, entry)


@pytest.mark.parametrize("length", [0, -1, "5", 1.5])
def test_a_length_is_a_number(tmp_path: Path, length: Any) -> None:
    with pytest.raises(InputError, match="output_tokens"):
        read(tmp_path, {"prompt": "x", "output_tokens": length})


@pytest.mark.parametrize("text", ["", "{", "[1", "[" * 100_000])
def test_what_is_no_json(tmp_path: Path, text: str) -> None:
    (tmp_path / "f").write_text(text)
    with pytest.raises(InputError, match=r"cannot be read|no prompt"):
        conversations.read(tmp_path / "f")


def test_a_tokenizer_counts_what_is_in_the_file(tmp_path: Path) -> None:
    tokenizer = Tokenizer(WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "f").write_text(json.dumps(said(("human", "a b a"), ("gpt", "b"), ("human", "a a"))))
    for given in (tmp_path, tmp_path / "tokenizer.json"):
        turns = conversations.read(tmp_path / "f", given).all[0].turns
        assert turns == [Turn("a b a", "b", 3, 1), Turn("a a", None, 2, None)]
    with pytest.raises(InputError, match="tokenizer"):
        conversations.read(tmp_path / "f", tmp_path / "f")
