"""Sources of calibration text: how they mix, data sets of a local folder, and names that are wrong."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from twofour.prune import PruneConfig
from twofour.prune.errors import InputError, TextError
from twofour.prune.text import corpus, sources

needs_datasets = pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs the extra hub")


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_folder)


@pytest.fixture
def model(tiny_model_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype="auto").eval()


@pytest.fixture
def data_set(tmp_path: Path) -> Path:
    """A folder with 40 documents of 30 times one letter, and the same in capitals under another name."""
    rows = [{"text": chr(97 + i % 26) * 30, "loud": chr(65 + i % 26) * 30, "number": i} for i in range(40)]
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "data" / "test.jsonl").write_text(json.dumps(rows[0]) + "\n")
    return tmp_path / "data"


def test_samples_take_turns_and_the_end_has_all_of_them() -> None:
    parts = [torch.full((count, 3), number) for number, count in enumerate((4, 2, 2))]
    assert sources.in_turns(parts)[:, 0].tolist() == [0, 0, 0, 1, 2, 0, 1, 2]


def test_samples_of_a_source_keep_their_order() -> None:
    parts = [torch.arange(6).view(3, 2), torch.arange(6, 12).view(3, 2)]
    assert sources.in_turns(parts).tolist() == [[0, 1], [6, 7], [2, 3], [8, 9], [4, 5], [10, 11]]
    assert torch.equal(sources.in_turns(parts[:1]), parts[0])


def test_a_mix_holds_what_each_source_gives_alone(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("0123456789" * 100)
    names = (str(tmp_path / "text.txt"), "self", "chat")
    mixed = sources.tokens(model, tokenizer, PruneConfig(calibration=names, samples=11, length=16, seed=3))
    assert mixed.shape == (11, 16)
    from_file = corpus.from_file(tokenizer, Path(names[0]), 5, 16, 3)
    alone = [
        from_file,
        corpus.documents_sampled(model, tokenizer, 3, 16, 3),
        corpus.chat_sampled(model, tokenizer, 3, 16, 3),
    ]
    assert torch.equal(mixed, sources.in_turns(alone))


def test_files_are_read_before_anything_is_sampled(model: Any, tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(corpus, "documents_sampled", None)  # must not be called
    for name in ("selv", "missing.txt", "/"):
        with pytest.raises(TextError, match=f"^{name} is no file, nor self, chat or hub:OWNER/NAME; check its name"):
            sources.tokens(model, tokenizer, PruneConfig(calibration=("self", name)))


def test_names_of_data_sets(tmp_path: Path) -> None:
    for name, expected in {
        "hub:owner/name": ("owner/name", None, "train", "text"),
        "hub:owner/name:validation": ("owner/name", None, "validation", "text"),
        "hub:owner/name/en::body": ("owner/name", "en", "train", "body"),
        f"hub:{tmp_path}:test": (str(tmp_path), None, "test", "text"),
    }.items():
        assert sources.parse(name) == expected
    for name in ("hub:", "hub:name", "hub:a/b/c/d", "hub:a/b:train:text:more"):
        with pytest.raises(InputError, match="does not name a data set; give hub:OWNER/NAME"):
            sources.parse(name)


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch, tokenizer: Any) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match=r'hub:a/b needs the package datasets; pip install "twofour\[hub\]"'):
        sources.from_hub(tokenizer, "hub:a/b", 1, 16, 0)


@needs_datasets
def test_a_data_set_is_shuffled_by_the_seed(data_set: Path, tokenizer: Any) -> None:
    first, again, other = (sources.from_hub(tokenizer, f"hub:{data_set}", 8, 32, seed) for seed in (0, 0, 1))
    assert first.shape == (8, 32) and torch.equal(first, again) and not torch.equal(first, other)
    words = {word for row in first for word in tokenizer.decode(row).split("\n\n")}
    assert all(set(word) <= {word[0]} for word in words if word) and len(words) >= 8


@needs_datasets
def test_another_column_and_split(data_set: Path, tokenizer: Any) -> None:
    loud = sources.from_hub(tokenizer, f"hub:{data_set}::loud", 4, 16, 0)
    assert tokenizer.decode(loud.flatten()).isupper()
    test = sources.from_hub(tokenizer, f"hub:{data_set}:test", 1, 30, 0)
    assert "aaaaaaaaaaaa" in tokenizer.decode(test[0])


@needs_datasets
@pytest.mark.parametrize(
    ("rest", "why"),
    [
        (":nowhere", "cannot be loaded .*check its name, config and split"),
        (":train:number", "no text in the column 'number' of text, loud, number; name another"),
        (":train:body", "no text in the column 'body'"),
        (":test", "holds 32 tokens, 2 samples of 30 need 60"),
    ],
)
def test_data_sets_that_do_not_fit(data_set: Path, tokenizer: Any, rest: str, why: str) -> None:
    with pytest.raises(TextError, match=why):
        sources.from_hub(tokenizer, f"hub:{data_set}{rest}", 2, 30, 0)


@needs_datasets
def test_an_empty_data_set(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "train.jsonl").write_text("")
    with pytest.raises(TextError, match=r"(holds 0 tokens|cannot be loaded)"):
        sources.from_hub(tokenizer, f"hub:{tmp_path}", 1, 16, 0)
