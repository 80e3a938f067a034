"""The page of a sweep: what users get against what machines give, limits, and what that costs."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_findings import CLOSED, run
from browser import CHROMIUM, nothing_sticks_out
from html_pages import HOSTILE, Page

from twofour.bench.load import slo
from twofour.bench.load.service import Service
from twofour.bench.report import sweep_html
from twofour.bench.sweep.document import document
from twofour.bench.sweep.limit import Limit
from twofour.bench.sweep.load import Load, Pace
from twofour.bench.sweep.search import Bracket
from twofour.bench.sweep.visit import Found, Visit
from twofour.bench.targets.running import Running
from twofour.bench.traffic.traffic import Traffic
from twofour.cli import main

SERVERS = [Running("slow", Service("http://a", "m")), Running("quick", Service("http://b", "m"))]
PROMISE = slo.parse("ttft_p50=500ms")
LOAD = Load(Traffic(prompt_tokens=CLOSED.prompt_tokens, output_tokens=CLOSED.output_tokens, seed=5), PROMISE)
TOKEN_S = {"slow": 0.02, "quick": 0.01}


def visit(server: str, pace: Pace, round_: int, times: float) -> Visit:
    """Tokens take longer by `times` at this pace."""
    asked = replace(CLOSED, concurrency=pace.concurrency, rate=pace.rate)
    done = run(asked, round_, times * TOKEN_S[server])
    return Visit(server, pace, round_, replace(done, slo=slo.attain(PROMISE, done.records)))


def plain(made: dict[str, Any]) -> dict[str, Any]:
    kept: dict[str, Any] = json.loads(json.dumps(made))
    return kept


@pytest.fixture(scope="module")
def ladder() -> dict[str, Any]:
    paces = {Pace(concurrency=1): 1.0, Pace(concurrency=8): 2.0}
    visits = [visit(name, pace, 0, times) for pace, times in paces.items() for name in TOKEN_S]
    return plain(document(Found(visits), SERVERS, LOAD, 1))


@pytest.fixture(scope="module")
def limits() -> dict[str, Any]:
    found = [visit(name, Pace(rate=2.0), round_, 1.0) for round_ in range(2) for name in TOKEN_S]
    ends = [Limit("slow", 0, Bracket(2.0, 2.1)), Limit("slow", 1, Bracket(2.0, None), "client")]
    ends += [Limit("quick", round_, Bracket(2.0, 2.1)) for round_ in range(2)]
    return plain(document(Found(found), SERVERS, LOAD, 2, ends))


def test_the_first_picture_is_users_against_the_machine(ladder: dict[str, Any]) -> None:
    first = sweep_html.figures(ladder)[0]
    # One after another, 10 tokens in 11 token times: 45 and 91 tokens/s; a user gets one each 20, 40, 10 or 20 ms.
    assert [[float(cell or 0) for cell in cells] for cells in first.cells] == [
        [25, 22.73, 0],
        [50, 45.45, 45.45],
        [100, 0, 90.91],
    ]
    assert first.legend == {"own": "slow", "dense": "quick"} and str(first.chart).count("<circle") == 4


def test_a_page_of_a_ladder(ladder: dict[str, Any]) -> None:
    text = sweep_html.page(ladder)
    page = Page(text)
    assert len(text) < 100_000
    assert len(list(page.of("svg"))) == len(list(page.of("desc"))) == 5
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert "Output tokens a second at most: slow 45.5, quick 90.9." in text
    assert "<td>8 at a time</td><td>slow</td>" in text and "What it costs" not in text


def test_limits_and_what_they_cost(limits: dict[str, Any]) -> None:
    text = sweep_html.page(limits, usd_per_hour=3.6, traffic=5.0)
    assert "slow at least 2 requests/s" in text and "<td>client</td>" in text
    slow, quick = sweep_html.spends(limits, 3.6, 5.0)
    # A machine costs 0.1 cents a second, at 20 + 10 tokens a request 30 of 11 token times: 136 and 273 tokens/s.
    assert quick[:2] == ("quick", "2") and quick.machines == slow.machines == "3"
    assert quick.per_request == "$0.5000"
    full, used = (float(price.strip("$")) for price in (quick.at_capacity, quick.at_traffic))
    assert full == pytest.approx(0.001 / (30 / 0.11) * 1e6, rel=0.01) and used == pytest.approx(full * 6 / 5, rel=0.01)
    assert float(slow.at_capacity.strip("$")) == pytest.approx(2 * full, rel=0.01)
    assert sweep_html.spends(limits, 3.6, None)[0].machines == ""


def test_a_sweep_that_says_nothing_yet(ladder: dict[str, Any]) -> None:
    empty = [cell | {"output_tokens_per_s": [], "goodput_per_s": None} for cell in ladder["cells"]]
    nothing = {name: {"n": 0, "mean": None, "p50": None, "p95": None} for name in ("ttft", "ttft_sched", "tpot")}
    text = sweep_html.page(ladder | {"cells": [cell | nothing for cell in empty], "valid": False, "complete": False})
    assert "slow not measured" in text and "cut off before its end" in text


def test_hostile_names_stay_text(ladder: dict[str, Any]) -> None:
    cells = [cell | {"server": HOSTILE, "invalid": [HOSTILE]} for cell in ladder["cells"]]
    servers = [ladder["servers"][0] | {"name": HOSTILE}]
    text = sweep_html.page(ladder | {"cells": cells, "servers": servers, "command": [HOSTILE]})
    assert not list(Page(text).of("script")) and "&lt;script" in text


def test_report_writes_it(limits: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept, page = tmp_path / "sweep.json", tmp_path / "sweep.html"
    kept.write_text(json.dumps(limits))
    price = ["--price-per-hour", "3.6"]
    assert main(["bench", "report", str(kept), "--html", str(page), *price, "--traffic", "0"]) == 1
    assert "--traffic is 0; it must be above 0" in capsys.readouterr().err and not page.exists()
    assert main(["bench", "report", str(kept), "--html", str(page), *price]) == 0
    assert page.read_text() == sweep_html.page(limits, 3.6)
    assert main(["bench", "report", str(kept), "--csv", str(page)]) == 1


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser(limits: dict[str, Any], tmp_path: Path) -> None:
    nothing_sticks_out(sweep_html.page(limits, 3.6, 5.0), tmp_path)
