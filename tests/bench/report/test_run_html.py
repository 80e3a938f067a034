"""The page of one run, and the forms beside it."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_findings import CLOSED, run
from browser import CHROMIUM, OVERFLOW, Browser
from html_pages import HOSTILE, Page

from twofour.bench.load import metrics
from twofour.bench.load.gates import Gate
from twofour.bench.load.records import Chunks
from twofour.bench.load.run import Run, document
from twofour.bench.load.stored import read
from twofour.bench.load.table import table
from twofour.bench.report import run_html
from twofour.cli import main

ABOUT = {
    "command": ["twofour", "bench", "run", "http://127.0.0.1:1"],
    "versions": {"python": "3.11", "torch": None},
    "hardware": {"summary": "a CPU, 2 logical CPUs", "system": "Linux"},
}


def plain(done: Run) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(json.dumps(document(done, with_records=True) | ABOUT))
    return kept


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return plain(run(CLOSED, 0, 0.01))


def test_the_page_is_one_small_file_with_described_charts(whole: dict[str, Any]) -> None:
    text = run_html.page(whole)
    page = Page(text)
    assert len(text) < 100_000
    assert len(list(page.of("svg"))) == len(list(page.of("desc"))) == len(list(page.of("details"))) == 6
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.of("svg"))
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert not any({"src", "href"} & attributes.keys() for _, attributes in page.tags)
    assert "nan" not in "".join(re.findall(r"<svg.*?</svg>", text, re.S)).lower()


def test_it_says_what_was_found_and_how_to_do_it_again(whole: dict[str, Any]) -> None:
    text = run_html.page(whole)
    assert "The first token comes after 20.0 ms (median), each further one after 10.0 ms" in text
    assert "twofour bench run http://127.0.0.1:1 --nonce nonce</code>" in text
    assert f"Load: {CLOSED.requests} requests, {CLOSED.concurrency} at a time" in text
    assert "<td>n &lt; 29</td>" in text and "Invalid" not in text


def test_an_invalid_run_says_why_and_one_that_was_cut_off_that_it_was() -> None:
    failed = Gate("cpu_pressure", 0.5, 0.1, "share", "stop what else runs")
    text = run_html.page(plain(replace(run(CLOSED, 0, 0.01, failed), cut_off=True)))
    assert "Invalid: do not quote these numbers." in text and "cut off before its end" in text
    assert re.search(r"cpu_pressure: 50.0%, at most 10.0%; stop what else runs", text)


def test_hostile_names_stay_text() -> None:
    done = run(CLOSED, 0, 0.01)
    evil = replace(done, service=replace(done.service, model=HOSTILE, url="http://h/<script>"), nonce=HOSTILE)
    evil.records[1].error = HOSTILE
    evil = replace(evil, summary=metrics.summarise(evil.records, evil.started_at))
    text = run_html.page(plain(evil) | {"command": [HOSTILE]})
    assert not list(Page(text).of("script")) and "&lt;script" in text


def test_a_run_in_which_all_failed_is_shown() -> None:
    done = run(CLOSED, 0, 0.01)
    for record in done.records:
        record.error, record.chunks = "status 503: no", Chunks()
    text = run_html.page(plain(replace(done, summary=metrics.summarise(done.records, done.started_at))))
    assert "None of 12 requests ended well." in text and "12 x status 503" in text and "not measured" in text


def test_an_open_loop_shows_what_was_offered() -> None:
    text = run_html.page(plain(run(replace(CLOSED, concurrency=None, rate=5.0), 0, 0.01)))
    assert "from the scheduled time</span>" in text and ">due</span>" in text


def test_long_runs_stay_small(whole: dict[str, Any]) -> None:
    records = [
        each
        | {name: each[name] + 60 * turn for name in ("scheduled_at", "sent_at", "headers_at", "done_at")}
        | {"chunks": [[at + 60 * turn, tokens] for at, tokens in each["chunks"]]}
        for turn in range(60)
        for each in whole["records"]
    ]
    assert len(run_html.page(whole | {"records": records})) < 100_000


def test_report_prints_a_run_and_writes_its_forms(
    whole: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = tmp_path / "run.json"
    kept.write_text(json.dumps(whole))
    page, rows, lines, short = (tmp_path / name for name in ("run.html", "run.csv", "run.jsonl", "short.json"))
    forms = ["--html", str(page), "--csv", str(rows), "--jsonl", str(lines), "--summary", str(short)]
    assert main(["bench", "report", str(kept), *forms]) == 0
    assert capsys.readouterr().out == table(read(whole)) + "\n"
    assert page.read_text() == run_html.page(whole)
    assert len(list(csv.DictReader(rows.read_text().splitlines()))) == len(lines.read_text().splitlines()) == 12
    assert json.loads(short.read_text()) == {name: part for name, part in whole.items() if name != "records"}


def test_report_of_a_run_without_its_requests(whole: dict[str, Any], tmp_path: Path) -> None:
    kept = tmp_path / "run.json"
    kept.write_text(json.dumps({name: part for name, part in whole.items() if name != "records"}))
    assert main(["bench", "report", str(kept)]) == 1


SMALLEST = """Math.min(...[...document.querySelectorAll('svg text')].map((e) => e.getBoundingClientRect().height))"""


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser(whole: dict[str, Any], tmp_path: Path) -> None:
    """On a phone and a desk, light and dark, nothing sticks out, letters can be read, and on paper it is all there."""
    file = tmp_path / "run.html"
    file.write_text(run_html.page(whole))
    browser = Browser(tmp_path / "profile")
    grounds = set()
    try:
        for width in (360, 1200):
            for dark in (False, True):
                browser.open(file.as_uri())
                browser.look(width, dark)
                browser.until("document.querySelector('main') && document.readyState === 'complete'")
                assert browser.evaluate(OVERFLOW) == []
                assert browser.evaluate("document.documentElement.scrollWidth") <= width
                assert browser.evaluate(SMALLEST) >= 9
                picture = browser.screenshot()
                browser.open("about:blank")
                seen = browser.colours(picture)
                assert seen["width"] == width and seen["height"] > 1500 and seen["colours"] > 30
                grounds.add((dark, seen["ground"]))
        browser.open(file.as_uri())
        browser.until("document.querySelector('main') && document.readyState === 'complete'")
        browser.look(1200, dark=True, medium="print")
        assert browser.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert browser.printed().count(b"/Type /Page\n") >= 2
    finally:
        browser.close()
    assert len(grounds) == 2 and len({ground for _, ground in grounds}) == 2
