"""The verb `bench report`: what was written before can still be read."""

import re
from pathlib import Path

import pytest

from twofour.bench.commands import report
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


def test_every_kind_of_document_has_a_table() -> None:
    sources = (path.read_text() for path in BENCH.rglob("*.py"))
    kinds = {kind for source in sources for kind in re.findall(r'^[A-Z]+ = "(twofour\.bench\.[\w.]+)"', source, re.M)}
    kinds -= {"twofour.bench.schedule"}  # of a file of requests
    assert len(kinds) > 8
    assert all(callable(report._table(kind)) for kind in kinds)
