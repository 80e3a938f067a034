"""Data sets: of a local folder, with text or conversations, their names, and what the label gets to know of them."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoTokenizer

from twofour.prune.errors import InputError, TextError
from twofour.prune.text import hub

needs_datasets = pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs the extra hub")


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_folder)


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """A folder with 40 documents of 30 times one letter, and the same in capitals under another name."""
    rows = [{"text": chr(97 + i % 26) * 30, "loud": chr(65 + i % 26) * 30, "number": i} for i in range(40)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "data" / "test.jsonl").write_text(json.dumps(rows[0]) + "\n")
    return tmp_path / "data"


def test_names_of_data_sets(tmp_path: Path) -> None:
    for name, expected in {
        "hub:owner/name": ("owner/name", None, "train", "text", None, False),
        "hub:owner/name:validation": ("owner/name", None, "validation", "text", None, False),
        "hub:owner/name/en::body": ("owner/name", "en", "train", "body", None, False),
        "hub:owner/name@v1.0/en::body": ("owner/name", "en", "train", "body", "v1.0", False),
        "hub:owner/name@0a1b:train_sft:messages": ("owner/name", None, "train_sft", "messages", "0a1b", False),
        f"hub:{tmp_path}:test": (str(tmp_path), None, "test", "text", None, True),
    }.items():
        assert hub.parse(name) == expected
    for name in ("hub:", "hub:name", "hub:a/b/c/d", "hub:a/b:train:text:more", "hub:a/@v1", "hub:a/b@"):
        with pytest.raises(InputError, match="does not name a data set; give hub:OWNER/NAME"):
            hub.parse(name)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    monkeypatch.setattr(hub, "_commit", lambda data, source: {})  # which asks the hub
    with pytest.raises(InputError, match=r'hub:a/b needs the package datasets; pip install "twofour\[hub\]"'):
        hub.drawn(tokenizer, "hub:a/b", 1, 16, 0)


@needs_datasets
def test_a_data_set_is_shuffled_by_the_seed(data_set: Path, tokenizer: Any) -> None:
    first, again, other = (hub.drawn(tokenizer, f"hub:{data_set}", 8, 32, seed)[0] for seed in (0, 0, 1))
    assert first.shape == (8, 32) and torch.equal(first, again) and not torch.equal(first, other)
    words = {word for row in first for word in tokenizer.decode(row).split("\n\n")}
    assert all(set(word) <= {word[0]} for word in words if word) and len(words) >= 8


@needs_datasets
def test_another_column_and_split(data_set: Path, tokenizer: Any) -> None:
    loud, _ = hub.drawn(tokenizer, f"hub:{data_set}::loud", 4, 16, 0)
    assert tokenizer.decode(loud.flatten()).isupper()
    test, _ = hub.drawn(tokenizer, f"hub:{data_set}:test", 1, 30, 0)
    assert "aaaaaaaaaaaa" in tokenizer.decode(test[0])


@needs_datasets
@pytest.mark.parametrize(
    ("rest", "why"),
    [
        (":nowhere", "cannot be loaded .*check its name, revision, config and split"),
        (":train:number", "no text and no conversation in the column 'number' of text, loud, number; name another"),
        (":train:body", "no text and no conversation in the column 'body'"),
        (":test", "holds 32 tokens, 2 samples of 30 need 60"),
    ],
)
def test_data_sets_that_do_not_fit(data_set: Path, tokenizer: Any, rest: str, why: str) -> None:
    with pytest.raises(TextError, match=why):
        hub.drawn(tokenizer, f"hub:{data_set}{rest}", 2, 30, 0)


@needs_datasets
def test_an_empty_data_set(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(TextError, match=r"(holds 0 tokens|cannot be loaded)"):
        hub.drawn(tokenizer, f"hub:{tmp_path}", 1, 16, 0)


@needs_datasets
def test_a_column_of_conversations(tmp_path: Path, tokenizer: Any) -> None:
    talks = [[{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}!"}] for n in range(9)]
    rows = [{"messages": talk, "text": "plain"} for talk in talks]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    windows, _ = hub.drawn(tokenizer, f"hub:{tmp_path}::messages", 4, 40, 0)
    whole = [tokenizer.apply_chat_template(talk, tokenize=False) for talk in talks]
    assert windows.shape == (4, 40) and all(
        tokenizer.decode(row[:25]) in whole
        for row in windows  # one token a special token, else one a byte
    )
    with pytest.raises(TextError, match="fill 4 windows of 40 tokens, 5 are asked for"):
        hub.drawn(tokenizer, f"hub:{tmp_path}::messages", 5, 40, 0)


@needs_datasets
def test_what_was_read_is_known_by_its_digest(data_set: Path, tokenizer: Any) -> None:
    one, same, other = (hub.drawn(tokenizer, f"hub:{data_set}", 4, 32, seed)[1] for seed in (0, 0, 1))
    assert one == same != other and set(one) == {"sha256"} and len(one["sha256"]) == 64


def test_the_commit_of_a_data_set_is_what_is_read(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = list[object]()
    monkeypatch.setattr(hub, "_rows", lambda *where: asked.append(where[3]) or [{"text": "abc " * 40}] * 9)

    class Info:
        sha = "0123abcd"

    monkeypatch.setattr("huggingface_hub.dataset_info", lambda name, revision: asked.append((name, revision)) or Info)
    _, about = hub.drawn(tokenizer, "hub:a/b@v1", 2, 16, 0)
    assert about["commit"] == "0123abcd" and asked == [("a/b", "v1"), "0123abcd"]
