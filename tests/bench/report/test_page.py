"""The report as a page, and the files that it is written to."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_findings import OF_URLS, PRICE, SPEEDS, findings
from html_pages import HOSTILE, Page

from twofour.bench.comparison.document import document
from twofour.bench.comparison.quality import Quality
from twofour.bench.load.endpoint import Memory, State
from twofour.bench.report.forms import Report
from twofour.cli import main
from twofour.prune.errors import OutputError

RESULTS = Path(__file__).parents[3] / "bench" / "results"


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return document(findings(SPEEDS))


def test_the_page_is_one_small_file_with_six_described_charts(whole: dict[str, Any]) -> None:
    text = Report(whole).html()
    page = Page(text)
    assert len(text) < 200_000
    assert len(list(page.of("svg"))) == len(list(page.of("desc"))) == len(list(page.of("details"))) == 6
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.of("svg"))
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert not any({"src", "href"} & attributes.keys() for _, attributes in page.tags)
    assert "nan" not in "".join(re.findall(r"<svg.*?</svg>", text, re.S)).lower()


def test_hostile_names_stay_text() -> None:
    found = findings(SPEEDS)
    evil_state = State(Memory(), {HOSTILE: 1}, 0, 0)
    changed = {"given": HOSTILE, "model": HOSTILE, "answer": HOSTILE, "command": [HOSTILE], "after": evil_state}
    arms = {name: replace(arm, **changed) for name, arm in found.arms.items()}
    evil = replace(PRICE, name=HOSTILE)
    quality = Quality(17.2, 24.9, None, None, 5, HOSTILE, HOSTILE)
    text = Report(
        document(replace(found, arms=arms, price=evil, quality=quality, question=HOSTILE, random_weights=HOSTILE))
    ).html()
    assert not list(Page(text).of("script")) and "&lt;script" in text


def test_the_page_has_both_ratios_and_what_ran(whole: dict[str, Any]) -> None:
    page = Report(whole).html()
    ratio = whole["metrics"]["tpot_mean"]
    for point in (ratio["ratio"]["point"], ratio["to_torch_dense"]["ratio"]["point"]):
        assert f"<td>{point:.3f}x</td>" in page
    for name in SPEEDS:
        assert f"kernels: {name} for 210 linears" in page
    curves = re.findall(r'class="curve (\w+)"', page)
    assert curves == [*SPEEDS, *SPEEDS]


def test_a_document_of_the_first_version_is_read() -> None:
    """As bench/results had it before torch dense was an arm."""
    new = document(findings(OF_URLS))
    old = json.loads(json.dumps(new))
    del old["random_weights"], old["cut_off"]
    old["baselines"] = {"served": {"dense": 210}, "best_dense": None}
    for figure in (*old["metrics"].values(), *(old["cost"][kind] for kind in ("blended", "output_only"))):
        del figure["torch_dense"], figure["to_torch_dense"]
    for figure in old["metrics"].values():
        del figure["pooled"]
    for name in ("weight_bytes", "linear_bytes", "device_peak_bytes"):
        del old["memory"][name]["to_torch_dense"]
    del old["memory"]["torch_dense"]
    assert Report(old).table() == Report(new).table()
    assert Report(old).html() == Report(new).html()


@pytest.mark.parametrize("file", sorted(RESULTS.glob("*.json")), ids=lambda file: file.name)
def test_results_that_were_written_before_are_read(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "report", str(file)]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 5


def test_written_once(whole: dict[str, Any], tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    page = Report(whole).write(out)
    assert page == out / "report.html" and sorted(path.name for path in out.iterdir()) == [
        *("report.html", "report.json"),
    ]
    assert json.loads((out / "report.json").read_text()) == json.loads(json.dumps(whole))
    with pytest.raises(OutputError, match=r"report\.json exists"):
        Report(whole).write(out)


def test_a_file_where_the_folder_should_be(whole: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(OutputError, match="cannot be made"):
        Report(whole).write(tmp_path / "out")
