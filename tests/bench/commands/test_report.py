"""The verb `bench report`: what was written before can still be read."""

import json
import re
from pathlib import Path

import pytest
from bench_findings import CLOSED, run

from twofour.bench.commands import report
from twofour.bench.load.run import document
from twofour.cli import main

BENCH = Path(__file__).parents[3] / "bench"
RESULTS = BENCH / "results"


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.name)
def test_every_result_that_is_kept_can_be_printed(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "report", str(file)]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 2


def test_a_file_of_another_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"kind": "twofour.bench.other"}')
    assert main(["bench", "report", str(other)]) == 1
    assert "other.json is no document of a verb of bench" in capsys.readouterr().err


def test_a_document_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "demo.json"
    kept.write_bytes((RESULTS / "demo.json").read_bytes())
    assert main(["bench", "report", str(kept), "--html", str(tmp_path / "x" / ".." / "demo.json")]) == 1
    assert "give each its own" in capsys.readouterr().err
    assert main(["bench", "report", str(kept), "--html", f"{tmp_path}/a", "--summary", f"{tmp_path}/a"]) == 1
    assert kept.read_bytes() == (RESULTS / "demo.json").read_bytes() and not (tmp_path / "a").exists()


def test_what_is_wrong_in_a_row_is_said_in_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, rows = tmp_path / "run.json", tmp_path / "rows.jsonl"
    written = document(run(CLOSED, 0, 0.01), with_records=True)
    written["records"][3]["chunks"] = []  # and no error
    kept.write_text(json.dumps(written))
    assert main(["bench", "report", str(kept), "--jsonl", str(rows)]) == 1
    assert "run.json is no document of a verb of bench (IndexError" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [kept]


@pytest.mark.parametrize("content", [b"[" * 100_000, bytes(range(256)) * 1000])
def test_what_is_no_json_is_refused_in_a_line(
    content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "f").write_bytes(content)
    assert main(["bench", "report", str(tmp_path / "f")]) == 1
    assert len(capsys.readouterr().err) < 700


def test_every_kind_of_document_has_a_table() -> None:
    sources = (path.read_text() for path in BENCH.rglob("*.py"))
    kinds = {kind for source in sources for kind in re.findall(r'^[A-Z]+ = "(twofour\.bench\.[\w.]+)"', source, re.M)}
    kinds -= {"twofour.bench.schedule"}  # of a file of requests
    assert len(kinds) > 8
    assert all(callable(report._table(kind)) for kind in kinds)
