"""Windows of a model that is used to BOS begin with it, whatever their text is; those of others are text alone."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from twofour.prune import PruneConfig, prune
from twofour.prune.errors import TextError
from twofour.prune.label import quality
from twofour.prune.text import chat, corpus, hub, sources, windows
from twofour.prune.text.plain import PlainWriter

LETTERS = "".join(chr(97 + i % 26) for i in range(480))


@pytest.fixture(scope="module")
def plain(tiny_model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_folder)


@pytest.fixture(scope="module")
def with_bos(tiny_bos_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_bos_folder)


@pytest.fixture
def letters(tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text(LETTERS)
    return tmp_path / "text.txt"


def test_the_tokenizer_is_asked(plain: Any, with_bos: Any) -> None:
    assert plain.bos_token_id == with_bos.bos_token_id == 1  # having one does not mean to begin with it
    assert windows.bos(plain) is None and windows.bos(with_bos) == 1


def test_windows_of_a_file_are_as_long_and_hold_a_token_less_of_text(plain: Any, with_bos: Any, letters: Path) -> None:
    ids = corpus.tokens(with_bos, letters)
    assert torch.equal(ids, corpus.tokens(plain, letters))  # BOS stands in windows, not in the text
    drawn = corpus.from_file(with_bos, letters, 32, 16, seed=3)
    assert drawn.shape == (32, 16) and (drawn[:, 0] == 1).all()
    assert sorted(drawn[:, 1:].flatten().tolist()) == sorted(ids.tolist())  # all of it, once
    assert torch.equal(drawn[:, 1:], corpus.from_file(plain, letters, 32, 15, seed=3))


def test_windows_of_an_evaluation() -> None:
    ids = torch.arange(100, 111)
    assert quality.windows(ids, 4, bos=1).tolist() == [[1, 100, 101, 102], [1, 103, 104, 105], [1, 106, 107, 108]]
    assert quality.windows(ids, 4, limit=1, bos=1).tolist() == [[1, 100, 101, 102]]
    assert quality.windows(ids[:3], 4, bos=1).tolist() == [[1, 100, 101, 102]]
    with pytest.raises(TextError, match=r"the text holds 2 tokens, a window of 4 needs 3"):
        quality.windows(ids[:2], 4, bos=1)


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs the extra hub")
def test_windows_of_a_data_set(with_bos: Any, tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("".join(json.dumps({"text": 9 * letter}) + "\n" for letter in "abcdefgh"))
    drawn, _ = hub.drawn(with_bos, f"hub:{tmp_path}", 4, 16, 0)
    assert drawn.shape == (4, 16) and (drawn[:, 0] == 1).all() and not (drawn[:, 1:] == 1).any()


def test_text_that_the_model_writes(tiny_bos_folder: Path, with_bos: Any, plain: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_bos_folder, dtype="auto").eval()
    assert corpus.start_token(with_bos) == 1 and corpus.start_token(plain) == 0  # both have <|endoftext|>, 0
    assert (corpus.documents_sampled(PlainWriter(model), with_bos, 2, 16, 0)[:, 0] == 1).all()
    opening = with_bos("<|im_start|>user\n", add_special_tokens=False)["input_ids"]
    assert list(chat.template(with_bos).opening) == opening  # BOS once, by the template


def test_every_sample_of_a_mix(tiny_bos_folder: Path, with_bos: Any, letters: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_bos_folder, dtype="auto").eval()
    config = PruneConfig(calibration=(str(letters), "self", "chat"), samples=9, length=32)
    assert (sources.tokens(lambda: PlainWriter(model), with_bos, config).ids[:, 0] == 1).all()


def test_the_label_says_which_texts_begin_with_bos(
    tiny_bos_folder: Path, tiny_model_folder: Path, letters: Path, tmp_path: Path
) -> None:
    config = PruneConfig(method="wanda", calibration=(str(letters), "self"), samples=4, length=16)
    said = {}
    for name, folder in (("with", tiny_bos_folder), ("without", tiny_model_folder)):
        made = prune(folder, tmp_path / name, config).manifest["calibration"]["sources"]
        said[name] = [source.get("begins_with") for source in made]
    assert said == {"with": ["<|im_start|>", None], "without": [None, None]}
    assert "text.txt" in (card := (tmp_path / "with" / "README.md").read_text())
    assert (
        "2 x 16 tokens, each after BOS; text that the dense model wrote (transformers), 2 x 16 tokens; seed 0" in card
    )
    assert "each after BOS" not in (tmp_path / "without" / "README.md").read_text()
