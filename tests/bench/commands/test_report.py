"""The verb `bench report`: what was written before can still be read."""

from pathlib import Path

import pytest

from twofour.cli import main

RESULTS = Path(__file__).parents[3] / "bench" / "results"


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.name)
def test_every_result_that_is_kept_can_be_printed(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "report", str(file)]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 2


def test_a_file_of_another_kind_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"kind": "twofour.bench.other"}')
    assert main(["bench", "report", str(other)]) == 1
    assert "is no report of bench compare, bench kernels or bench pruning" in capsys.readouterr().err
