"""Verbs that are interrupted or killed: what had begun is ended, and what was measured is printed."""

import json
import os
import signal
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest
from bench_findings import SPEEDS, findings

from twofour.bench.comparison import compare as comparison
from twofour.bench.comparison.document import document
from twofour.bench.engine import http_layer
from twofour.bench.engine import step as overhead
from twofour.bench.engine.http_layer import Cell, Lap
from twofour.bench.engine.step import Overhead
from twofour.bench.pruning import presets as pruning
from twofour.bench.report.forms import Report
from twofour.bench.turns import whole_rounds
from twofour.cli import main

LAP = Lap(4, 0, 2.0, (0.1, 0.2, 0.3, 0.4), None)
KILLED = [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]


def killed_at(turn: int, number: int = signal.SIGINT) -> Callable[[], int]:
    turns = count()

    def take() -> int:
        if (now := next(turns)) == turn:
            os.kill(os.getpid(), number)
        return now

    return take


def test_whole_rounds_are_kept() -> None:
    take = killed_at(5)
    assert whole_rounds({"a": take, "b": take}, range(9)) == {"a": [0, 3], "b": [1, 2]}
    take = killed_at(-1)
    assert whole_rounds({"a": take, "b": take}, range(2)) == {"a": [0, 3], "b": [1, 2]}


def test_without_a_whole_round_there_is_nothing_to_keep() -> None:
    take = killed_at(1)
    with pytest.raises(KeyboardInterrupt):
        whole_rounds({"a": take, "b": take}, range(9))


def status(words: list[str]) -> int:
    try:
        return main(words)
    except SystemExit as end:
        return int(str(end.code))


@pytest.mark.parametrize(("number", "expected"), KILLED)
def test_the_server_of_bench_http_is_stopped_and_its_rounds_are_shown(
    number: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped, cells = [], {Cell(False, 1, 1): 0, Cell(True, 32, 8): 0}
    take = killed_at(4, number)

    def measured(model: str, rounds: int, seconds: float, progress: object) -> dict[Cell, list[Lap]]:
        try:
            return whole_rounds({cell: lambda: (take(), LAP)[1] for cell in cells}, range(rounds))
        finally:
            stopped.append(model)

    monkeypatch.setattr(http_layer, "measure", measured)
    out = tmp_path / "http.json"
    assert status(["bench", "http", "m", "--rounds", "5", "--json", "--out", str(out)]) == expected
    said = capsys.readouterr()
    assert json.loads(said.out) == json.loads(out.read_text())
    assert json.loads(said.out)["rounds"] == 2 and "interrupted after 2 of 5 rounds" in said.err
    assert stopped == ["m"]


def test_bench_overhead_shows_its_rounds(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    found = Overhead(3, "bfloat16", (1.0, 1.1), (1.2, 1.3), ())
    monkeypatch.setattr(overhead, "measure", lambda *_: found)
    assert status(["bench", "overhead", "m", "--rounds", "2"]) == 0
    assert status(["bench", "overhead", "m", "--rounds", "15"]) == 130
    said = capsys.readouterr()
    assert said.out.count("2 rounds") == 2 and said.err.startswith("interrupted after 2 of 15 rounds")


@pytest.mark.parametrize(("number", "expected"), KILLED)
def test_what_bench_pruning_had_started_hears_of_the_signal(
    number: int, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = []

    def waits(*_: object) -> None:
        try:
            killed_at(0, number)()
        except KeyboardInterrupt:  # by which subprocess ends its child
            ended.append(number)
            raise

    monkeypatch.setattr(pruning, "compare_presets", waits)
    words = ["bench", "pruning", "m", "--text", "t", "--work", str(tmp_path), "--out", str(tmp_path / "x.json")]
    assert status(words) == expected
    assert ended == [number]


def test_a_report_that_cannot_be_written_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"

    def compared(*_: object, **__: object) -> Report:
        out.rmdir()
        out.touch()
        return Report(document(findings(SPEEDS)))

    monkeypatch.setattr(comparison, "compare", compared)
    assert status(["bench", "compare", "dense", "sparse", "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert "perplexity" in said.out and "cannot be made" in said.err
