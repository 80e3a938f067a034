"""Presets compared: the halves of a text, the share of the gap, and a real comparison of a tiny model."""

import hashlib
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from preset_runs import BEST, FAST

from twofour.bench.pruning import presets as pruning
from twofour.bench.pruning.presets import Trials, compare_presets, gaps, split, table, with_gaps
from twofour.cli import main
from twofour.prune.errors import InputError, ServerError, TextError, TwofourError


def test_the_halves_are_the_text_and_meet_at_a_line_end(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("eins\nzwei\ndréi und mehr\nvier\nfünf\n", encoding="utf-8")
    first, second = (half.read_text(encoding="utf-8") for half in split(text, tmp_path))
    assert (first, second) == ("eins\nzwei\ndréi und mehr\n", "vier\nfünf\n")


def test_a_text_without_lines_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text("one line\nand a last one that is longer than the first")
    with pytest.raises(TextError, match="no line end behind its middle"):
        split(tmp_path / "text.txt", tmp_path)


@pytest.mark.parametrize("content", [None, b"\xff\n\xff\n"])
def test_what_is_no_text_is_refused(tmp_path: Path, content: bytes | None) -> None:
    if content:
        (tmp_path / "text.txt").write_bytes(content)
    with pytest.raises(TextError, match="cannot be read as UTF-8 text"):
        split(tmp_path / "text.txt", tmp_path)


@pytest.mark.parametrize(("content", "why"), [("# Notes", "cannot be read as JSON"), ("{}", "give another --out")])
def test_a_file_of_something_else_is_not_added_to(tmp_path: Path, content: str, why: str) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "out.json"
    text.write_text("one\ntwo\nthree\n")
    out.write_text(content)
    with pytest.raises(TwofourError, match=why):
        compare_presets(Trials("m", text, ["fast"], ["first"], [0]), tmp_path / "work", out)
    assert out.read_text() == content


def test_the_gap_is_closed_between_the_fast_run_and_dense() -> None:
    closed = gaps(BEST, FAST)
    assert closed["gc"] == pytest.approx(40 / 60) and closed["nll_gc"] == pytest.approx(math.log(2) / math.log(4))
    assert gaps(FAST, FAST) == {"gc": 0.0, "nll_gc": 0.0}
    assert gaps(BEST, None) == {"gc": None, "nll_gc": None}


def test_the_reference_has_the_same_calibration_samples_and_seed() -> None:
    other, int8 = FAST | {"seed": 1, "perplexity": 100.0}, FAST | {"values": "int8", "perplexity": 60.0}
    longer = BEST | {"samples": 128}
    runs = with_gaps({"runs": [other, int8, BEST, FAST, longer]})["runs"]
    assert [run["gc"] for run in runs] == [0.0, pytest.approx(20 / 60), pytest.approx(40 / 60), 0.0, None]


def test_the_table_reads_as_markdown() -> None:
    lines = table(with_gaps({"runs": [BEST, FAST | {"values": "int8"}]})).splitlines()
    assert lines[2] == "| self | 64 | 0 | best | 1.5 | 3.0 | 40.00 (2.00x) | - | - | 0.500 | 60.0% | - |"
    assert lines[3].startswith("| self | 64 | 0 | fast, int8 |") and len({line.count("|") for line in lines}) == 1


def test_a_comparison_goes_on_where_it_was(
    tiny_model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a line of words, and another one\n" * 40)
    out = tmp_path / "results.json"
    asked = Trials(str(tiny_model_folder), text, ["fast"], ["first"], [3], samples=2, length=16, window=16)
    (fast,) = compare_presets(asked, tmp_path / "work", out)["runs"]
    assert "gc" in fast and fast["overfit_nats"] is not None and fast["perplexity"] != fast["dense_perplexity"]
    words = ["bench", "pruning", str(tiny_model_folder), "--text", str(text), "--work", str(tmp_path / "work")]
    words += ["--out", str(out), "--seed", "3", "--calibration", "first", "--samples", "2", "--length", "16"]
    assert main([*words, "--window", "16", "--preset", "balanced", "fast", "--json"]) == 0
    runs = json.loads(capsys.readouterr().out)["runs"]
    assert [run["preset"] for run in runs] == ["fast", "balanced"] and runs[0] == fast
    assert "gc" in runs[1] and runs[1]["minutes"] > 0
    monkeypatch.setattr(pruning.child, "twofour", None)  # must not be called
    assert len(compare_presets(asked, tmp_path / "work", out)["runs"]) == 2
    with pytest.raises(InputError, match=r"results\.json holds runs of .*'length': 16.*, not of .*'length': 8"):
        compare_presets(replace(asked, length=8), tmp_path / "work", out)


def test_several_sources_are_one_calibration(tiny_model_folder: Path, tmp_path: Path) -> None:
    text, more = tmp_path / "text.txt", tmp_path / "more.txt"
    text.write_text("a line of words, and another one\n" * 40)
    more.write_text("other words\n" * 40)
    asked = Trials(
        *(str(tiny_model_folder), text, ["fast"], [f"first+self:first+{more}", "first"], [0]),
        **{"samples": 3, "length": 16, "window": 16},
    )
    mixed, alone = compare_presets(asked, tmp_path / "work", tmp_path / "results.json")["runs"]
    named = f"{tiny_model_folder.name}-first-text.txt+self:first-text.txt+more.txt-3-0-fast-model-16"
    pruned = tmp_path / "work" / named
    manifest = json.loads((pruned / "twofour.json").read_text())
    first, begun, other = manifest["calibration"]["sources"]
    assert (first["source"], begun["source"]) == ("first-text.txt", "self:first-text.txt")
    digest = hashlib.sha256(more.read_bytes()).hexdigest()
    assert other == {"source": "more.txt", "samples": 1, "sha256": digest}
    assert mixed["overfit_nats"] is None and mixed["kl_nats"] != alone["kl_nats"]
    assert table({"runs": [mixed]}).splitlines()[2].startswith("| first+self:first+more.txt | 3 | 0 | fast |")


def test_a_prune_that_fails_ends_the_comparison(tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text("a line\n" * 4)
    with pytest.raises(ServerError, match="twofour prune ended with status 1"):
        compare_presets(Trials(str(tmp_path), text, ["fast"], ["first"], [0]), tmp_path / "work", tmp_path / "out.json")


def test_a_budget_is_a_run_of_its_own() -> None:
    asked = Trials("m", Path("t"), ["best", "fast"], ["self"], [0], values=["int8"], budgets=[0.4])
    runs = list(asked.runs())
    assert [(run["preset"], run["values"], run["budget"]) for run in runs] == [
        *(("fast", "int8", None), ("fast", "model", 0.4), ("best", "int8", None), ("best", "model", 0.4)),
    ]
    assert pruning._options(asked, runs[3], ["self"])[4:] == [
        *("--preset", "best", "--seed", "0", "--budget", "0.4", "--calibration", "self"),
    ]
    named = [pruning._folder_name(asked, run, ["self"]) for run in runs]
    assert named[2:] == ["m-self-64-0-best-int8-512", "m-self-64-0-best-model-0.4-512"]
