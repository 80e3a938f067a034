"""Sources of calibration text: how they mix, a stream of them, and names that are wrong."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from twofour.prune import PruneConfig
from twofour.prune.errors import TextError
from twofour.prune.recovery.stream import SHARED
from twofour.prune.text import corpus, sources
from twofour.prune.text.plain import PlainWriter


@pytest.fixture(scope="module")
def tokenizer(tiny_model_folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(tiny_model_folder)


@pytest.fixture
def model(tiny_model_folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(tiny_model_folder, dtype="auto").eval()


def test_samples_take_turns_and_the_end_has_all_of_them() -> None:
    parts = [torch.full((count, 3), number) for number, count in enumerate((4, 2, 2))]
    assert sources.in_turns(parts)[:, 0].tolist() == [0, 0, 0, 1, 2, 0, 1, 2]


def test_samples_of_a_source_keep_their_order() -> None:
    parts = [torch.arange(6).view(3, 2), torch.arange(6, 12).view(3, 2)]
    assert sources.in_turns(parts).tolist() == [[0, 1], [6, 7], [2, 3], [8, 9], [4, 5], [10, 11]]
    assert torch.equal(sources.in_turns(parts[:1]), parts[0])


def test_a_mix_holds_what_each_source_gives_alone(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("0123456789" * 100)
    (tmp_path / "other.txt").write_text("abcdefghij" * 100)
    names, writer = (str(tmp_path / "text.txt"), "self", str(tmp_path / "other.txt")), PlainWriter(model)
    mixed = sources.tokens(lambda: writer, tokenizer, PruneConfig(calibration=names, samples=11, length=16, seed=3))
    assert mixed.ids.shape == (11, 16) and mixed.about["self"] == {"written_by": "transformers"}
    alone = [
        corpus.from_file(tokenizer, Path(names[0]), 5, 16, 3),
        corpus.documents_sampled(writer, tokenizer, 3, 16, 3),
        corpus.from_file(tokenizer, Path(names[2]), 3, 16, 3),
    ]
    assert torch.equal(mixed.ids, sources.in_turns(alone))


def test_a_stream_is_fresh_and_each_chunk_depends_on_its_number_alone(model: Any, tokenizer: Any) -> None:
    def chunks(first: int) -> list[Any]:
        config = PruneConfig(calibration="self", length=16, seed=3)
        stream = sources.stream(lambda: PlainWriter(model), tokenizer, config, windows=2, first=first)
        return [chunk.ids for chunk in itertools.islice(stream, 4 - first)]

    whole, rest = chunks(0), chunks(2)
    assert all(chunk.shape == (2, 16) for chunk in whole)
    assert [chunk.tolist() for chunk in rest] == [chunk.tolist() for chunk in whole[2:]]
    rows = {tuple(row) for chunk in whole for row in chunk.tolist()}
    first = sources.tokens(lambda: PlainWriter(model), tokenizer, PruneConfig(length=16, seed=3, samples=8)).ids
    assert len(rows) == 8 and rows.isdisjoint(map(tuple, first.tolist()))


def test_files_are_read_before_anything_is_written(tokenizer: Any) -> None:
    def never() -> Any:
        raise AssertionError("it must not be called")

    for name in ("selv", "missing.txt", "/"):
        with pytest.raises(TextError, match=f"^{name} is no file, nor self, chat, self:FILE or hub:OWNER/NAME; check"):
            sources.tokens(never, tokenizer, PruneConfig(calibration=("self", name)))


@pytest.mark.parametrize("source", ["self:missing.txt", "self:"])
def test_a_file_to_go_on_from_is_looked_for_before_there_is_a_model(source: str) -> None:
    with pytest.raises(TextError, match=r" is no file, nor self, chat, self:FILE or hub:OWNER/NAME; check its name"):
        sources.require(PruneConfig(calibration=source))


def test_the_model_goes_on_from_pieces_of_a_file(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    file = tmp_path / "text.txt"
    file.write_text("".join(chr(65 + i // 20) + chr(97 + i % 20) for i in range(240)))
    config, writer = PruneConfig(calibration=f"self:{file}", samples=6, length=20, seed=3), PlainWriter(model)
    found = sources.tokens(lambda: writer, tokenizer, config)
    pieces = [tokenizer.decode(row[1:6]) for row in found.ids.tolist()]  # a quarter of a document
    text = file.read_text()
    assert found.ids.shape == (6, 20) and (found.ids[:, 0] == 0).all() and len(set(pieces)) > 1
    assert all(piece in text for piece in pieces)
    assert not any(tokenizer.decode(row[1:]) in text for row in found.ids.tolist())
    assert found.about == {f"self:{file}": {"written_by": "transformers"}}
    assert sources.written(config) == sources.written(PruneConfig(calibration="self", samples=6, length=20))


def test_a_piece_is_no_run_that_a_stream_holds_out() -> None:
    assert corpus.PIECE_TOKENS < SHARED


def test_a_file_shorter_than_a_piece_is_refused(model: Any, tokenizer: Any, tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("abc")
    config = PruneConfig(calibration=f"self:{tmp_path / 'text.txt'}", samples=2, length=20)
    with pytest.raises(TextError, match=r"text\.txt holds 3 tokens, a piece to go on from is 5; give more text"):
        sources.tokens(lambda: PlainWriter(model), tokenizer, config)
