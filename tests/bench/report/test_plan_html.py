"""The page of a plan."""

import json
from pathlib import Path
from typing import Any

import pytest
from browser import CHROMIUM, nothing_sticks_out
from html_pages import HOSTILE, Page
from plans import profile, traffic

from twofour import bench
from twofour.bench.capacity.growth import parse
from twofour.bench.report import plan_html, plan_rows


@pytest.fixture(scope="module")
def found() -> dict[str, Any]:
    made = bench.plan(
        [profile(), profile("sparse", 1.6, quality_loss=0.05)],
        traffic(80.0),
        "ttft_p95=100ms,itl_p95=30ms",
        price=["dense=2", "sparse=2.5"],
        growth=parse("5%/month"),
    )
    plain: dict[str, Any] = json.loads(json.dumps(made))
    return plain | {"command": ["twofour", "plan"], "started": "2026-06-01T00:00:00+00:00", "versions": {"x": None}}


def test_a_page(found: dict[str, Any]) -> None:
    text = plan_html.page(found)
    page = Page(text)
    assert "over 19 worlds" in text and f"in {round(19 * found['options'][1]['sure']['holds'])} of 19" in text
    assert len(list(page.of("svg"))) == len(list(page.of("desc"))) == 4
    assert not {"script", "link", "img", "iframe"} & {tag for tag, _ in page.tags}
    assert plan_rows.headline(found).replace("&", "&amp;") in text and "<code>twofour plan</code>" in text


def test_the_command_can_be_pasted(found: dict[str, Any]) -> None:
    text = plan_html.page(found | {"command": ["twofour", "plan", "--price", "H100-dense=H100 SXM"]})
    assert "<code>twofour plan --price &#39;H100-dense=H100 SXM&#39;</code>" in text


def test_the_chart_has_no_fewer_machines_at_the_peak_than_the_plan(found: dict[str, Any]) -> None:
    options = [each | {"headroom": 0.3, "replicas": 5, "machines": 6, "cost": None} for each in found["options"]]
    at_peak = next(
        cells for cells in plan_html.figures(found | {"options": options})[-1].cells if float(cells[0]) == 80
    )
    assert {float(cell) for cell in at_peak[1:]} == {6.0}


def test_latency_is_drawn_up_to_twice_the_promise(found: dict[str, Any]) -> None:
    first = plan_html.figures(found)[0]
    assert first.title == "ttft p95 against rate"
    assert first.legend == {"own": "dense", "dense": "sparse", "torch_dense": "the promise"}
    values = [float(cell) for cells in first.cells for cell in cells[1:] if cell]
    assert max(values) <= 200 and {float(cells[3]) for cells in first.cells if cells[3]} == {100.0}


def test_cost_at_the_peak_is_that_of_the_plan(found: dict[str, Any]) -> None:
    figure = next(each for each in plan_html.figures(found) if each.title == "Cost against rate")
    at_peak = next(cells for cells in figure.cells if float(cells[0]) == 80)
    monthly = [each["cost"]["usd_per_month"] for each in found["options"]]
    assert [float(cell) for cell in at_peak[1:]] == pytest.approx(monthly, rel=1e-3)
    used = plan_html.figures(found)[-1]
    whole = next(cells for cells in used.cells if float(cells[0]) == 100)
    capacity = [each["cost"]["at_capacity"]["blended"] for each in found["options"]]
    assert [float(cell) for cell in whole[1:]] == pytest.approx(capacity, rel=1e-3)


def test_the_price_at_which_the_answer_changes(found: dict[str, Any]) -> None:
    (dense, *_), (sparse, now, even, other) = plan_html.sensitivity(found)
    assert (dense, sparse, now, other) == ("dense", "sparse", "$2.50", "dense")
    machines = [each["machines"] for each in found["options"]]
    assert float(even.strip("$")) == pytest.approx(2 * machines[0] / machines[1], abs=0.005)


def test_without_prices_machines_are_drawn(found: dict[str, Any]) -> None:
    options = [each | {"cost": None, "price": None} for each in found["options"]]
    bare = found | {"options": options}
    assert [each.title for each in plan_html.figures(bare)][-1] == "Machines against rate"
    assert "$" not in plan_html.page(bare)


def test_an_option_that_cannot(found: dict[str, Any]) -> None:
    nothing = dict.fromkeys(["replicas", "machines", "headroom", "utilisation", "at_peak", "sure", "cost", "growth"])
    worse = found["options"][0] | nothing
    text = plan_html.page(found | {"options": [worse, found["options"][1]], "chosen": "sparse"})
    assert "no number of machines of dense does" in text


def test_hostile_names_stay_text(found: dict[str, Any]) -> None:
    options = [each | {"name": HOSTILE} for each in found["options"]]
    text = plan_html.page(found | {"options": options, "chosen": HOSTILE, "warnings": [HOSTILE], "command": [HOSTILE]})
    assert not list(Page(text).of("script")) and "&lt;script" in text


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_in_a_browser(found: dict[str, Any], tmp_path: Path) -> None:
    nothing_sticks_out(plan_html.page(found), tmp_path)
