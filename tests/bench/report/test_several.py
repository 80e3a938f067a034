"""Several arms for people: the table, the page and the pictures, and `bench report` that writes them."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from bench_findings import CLOSED
from html_pages import HOSTILE, Page
from several_findings import DENSE, INT8, MIXED, SPARSE, several

from twofour.bench.report.forms import Report
from twofour.cli import main


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return several()


def test_the_table_marks_the_front(whole: dict[str, Any]) -> None:
    lines = Report(whole).table().splitlines()
    offers = {line.split()[0]: line.split() for line in lines if re.match(r"  \S+ +[\d.]+ +[\d.]+x ", line)}
    assert offers[DENSE][1:6] == ["0", "1.00x", "0.0", "1.000x", "*"] and offers[DENSE].count("*") == 3
    assert offers[INT8][1:5] == ["0.003", "1.01x", "0.0", "0.531x"] and offers[SPARSE].count("*") == 3
    assert "*" not in offers[MIXED]
    text = " ".join(" ".join(lines).split())
    assert f"2:4 does not pay at this load: a token by {MIXED} costs" in text and "$0.36 per hour for small box" in text
    assert f"{SPARSE} models/{SPARSE}: {SPARSE} for 210 linears" in text and "VALID" in text
    tpot = lines[next(n for n, line in enumerate(lines) if "inter-token latency" in line) + 2]
    assert tpot.split()[:4] == [SPARSE, "6.42", "ms", "0.504x"] and tpot.endswith("better")


def test_the_page_has_a_picture_for_each_cost(whole: dict[str, Any]) -> None:
    text = Report(whole).html()
    page = Page(text)
    assert len(list(page.of("svg"))) == len(list(page.of("desc"))) == 3
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    hollow = [mark for mark in re.findall(r'class="mark (\w+ hollow)"', text)]
    assert hollow.count("mixture hollow") == 3 and len(hollow) == 6  # one more for the legend of each
    assert f"2:4 does not pay at this load: a token by {MIXED}" in text and "corrected for how many ratios" in text


def test_hostile_names_stay_text(whole: dict[str, Any]) -> None:
    evil = json.loads(json.dumps(whole).replace(MIXED, HOSTILE.replace('"', "'")))
    assert not list(Page(Report(evil).html()).of("script")) and "&lt;script" in Report(evil).html()


def test_nothing_known_is_said_as_that(whole: dict[str, Any]) -> None:
    little = several(qualities={}, price=None, unpriced="no GPU was found")
    little["arms"][SPARSE]["answer"] = little["arms"][SPARSE]["kernels"] = None
    report = Report(little)
    assert "not measured (no chat)" in report.table() and "No price: no GPU was found" in report.table()
    assert (
        "  * " not in report.table()
        and len(list(Page(report.html()).of("svg"))) == 0
        and "None" not in report.table() + report.html()
    )


def test_an_open_loop_has_no_dollars() -> None:
    report = Report(several(experiment=replace(CLOSED, concurrency=None, rate=5.0)))
    assert len(list(Page(report.html()).of("svg"))) == 2 and "dollar" not in report.table().lower()


def test_pictures_are_written(whole: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "report.json"
    file.write_text(json.dumps(whole))
    words = ["bench", "report", str(file), "--html", str(tmp_path / "page.html"), "--summary", str(tmp_path / "s.json")]
    for flag in ("--svg", "--speed-svg", "--cost-svg"):
        words += [flag, str(tmp_path / f"{flag[2:]}.svg")]
    assert main(words) == 0
    assert capsys.readouterr().out == Report(whole).table() + "\n"
    for name in ("svg", "speed-svg", "cost-svg"):
        drawn = ElementTree.fromstring((tmp_path / f"{name}.svg").read_text())
        said = "".join(drawn.itertext())
        assert all(arm in said for arm in (DENSE, INT8, SPARSE, MIXED))
    short = json.loads((tmp_path / "s.json").read_text())
    assert "runs" not in short and Report(short).table() == Report(whole).table()
    assert Report(short).html() == (tmp_path / "page.html").read_text()
    assert main(["bench", "report", str(file), "--tokens-svg", str(tmp_path / "t.svg")]) == 1
    assert "no such picture; leave out --tokens-svg" in capsys.readouterr().err
    file.write_text(json.dumps(several(qualities={})))
    assert main(["bench", "report", str(file), "--svg", str(tmp_path / "t.svg")]) == 1
    assert "give bench compare --quality" in capsys.readouterr().err
