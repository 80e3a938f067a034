"""Arms under other loads: what is swept, what a million tokens cost there, and how it is shown."""

from collections.abc import Iterator
from dataclasses import replace
from math import sqrt
from statistics import fmean
from typing import Any

import pytest
from bench_findings import CLOSED, OF_URLS, PRICE, SPEEDS, findings
from queues import queued

from twofour.bench.comparison import views as module
from twofour.bench.comparison.document import document
from twofour.bench.comparison.experiment import Experiment
from twofour.bench.comparison.served import Arm
from twofour.bench.comparison.views import Also, refuse_without_slo, views, with_costs
from twofour.bench.load.endpoint import Endpoint
from twofour.bench.load.run import Run
from twofour.bench.load.service import Service
from twofour.bench.load.slo import parse
from twofour.bench.load.workload import Lengths, Schedule
from twofour.bench.report.forms import Report
from twofour.bench.sweep import visit
from twofour.bench.sweep.load import Pace
from twofour.prune.errors import InputError
from twofour.prune.progress import silent

ARMS = {name: Arm(name, Endpoint(f"http://{name}", name), None, None, None) for name in ("dense", "sparse")}
ASKED = Experiment(rounds=2, prompt_tokens=Lengths(6), output_tokens=Lengths(5), slo=parse("ttft_p95=220ms"))
ALSO = Also([Pace(rate=2.0), Pace(8), Pace(1)], search=True)


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def measured(service: Service, schedule: Schedule, progress: object) -> Run:
        return queued(service, schedule, 0.02 if service.model == "dense" else 0.01)

    monkeypatch.setattr(visit, "measure", measured)
    monkeypatch.setattr(module, "WITHIN", 0.1)
    yield


def test_all_paces_and_the_search_are_views() -> None:
    closed, rates, search = views(ARMS, ASKED, ALSO, silent)[0]
    assert [(cell["concurrency"], cell["server"]) for cell in closed["cells"]] == [
        *((1, "dense"), (1, "sparse"), (8, "dense"), (8, "sparse")),
    ]
    assert [(cell["rate"], cell["server"]) for cell in rates["cells"]] == [(2.0, "dense"), (2.0, "sparse")]
    assert [limit["server"] for limit in search["limits"]] == ["dense", "sparse"]
    assert views(ARMS, ASKED, Also(), silent) == ([], False)


def test_what_a_million_tokens_cost_there() -> None:
    closed, rates, search = (with_costs(view, PRICE) for view in views(ARMS, ASKED, ALSO, silent)[0])
    dense, sparse = (next(c for c in closed["costs"] if (c["place"], c["server"]) == ("8 at a time", n)) for n in ARMS)
    runs = [run["summary"]["total_tokens_per_s"] for run in closed["cells"][2]["runs"]]
    assert dense["blended"] == pytest.approx(1e6 * 0.36 / 3600 / sqrt(runs[0] * runs[1]))
    assert dense["ratio"]["point"] == 1 and sparse["ratio"]["point"] == pytest.approx(0.5)
    assert sparse["verdict"] == "better" and rates["costs"] == []  # the rate is not the arm's own
    assert [cost["place"] for cost in search["costs"]] == ["the highest rate that keeps the SLO"] * 2
    lows = {(each["server"], each["round"]): each["total_tokens_per_s"] for each in search["searches"]}
    ratios = [lows["dense", round_] / lows["sparse", round_] for round_ in range(2)]
    assert search["costs"][1]["ratio"]["point"] == pytest.approx(sqrt(ratios[0] * ratios[1]))
    unpriced = with_costs(search, None)["costs"]
    assert unpriced[1]["blended"] is None and unpriced[1]["ratio"] == search["costs"][1]["ratio"]


def test_without_an_slo_there_is_nothing_to_search_for() -> None:
    with pytest.raises(InputError, match="give --slo, too"):
        refuse_without_slo(replace(ASKED, slo=None), ALSO)
    refuse_without_slo(replace(ASKED, slo=None), Also([Pace(1)]))


def test_an_interrupt_leaves_what_was_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(service: Service, schedule: Schedule, progress: object) -> Run:
        if schedule.concurrency is None:
            raise KeyboardInterrupt
        return queued(service, schedule, 0.02)

    monkeypatch.setattr(visit, "measure", measured)
    seen, cut_off = views(ARMS, ASKED, ALSO, silent)
    assert cut_off and len(seen) == 1 and seen[0]["complete"]


def told(**changed: Any) -> dict[str, Any]:
    seen = views(ARMS, ASKED, ALSO, silent)[0]
    return document(findings(SPEEDS, replace(CLOSED, slo=ASKED.slo), views=seen, **changed))


def test_views_are_in_every_form_of_the_report_and_decide_on_validity() -> None:
    found = told()
    assert not any("runs" in cell for view in found["views"] for cell in view["cells"])
    assert found["valid"] == all(view["valid"] for view in found["views"])
    report = Report(found)
    for form in (report.table(), report.html()):
        assert "Under other loads" in form and "highest rate that keeps it" in form
        assert "a million tokens, 8 at a time, sparse:" in form and "2 requests/s, dense" in form
    spoiled = views(ARMS, ASKED, Also([Pace(1)]), silent)[0]
    assert not document(findings(OF_URLS, views=[spoiled[0] | {"valid": False}]))["valid"]
    without = Report(document(findings(OF_URLS)))
    assert "other loads" not in without.table() + without.html()


def test_a_good_request_has_a_cost() -> None:
    promised = replace(CLOSED, slo=parse("e2e=10s"))
    found = document(findings(OF_URLS, promised))
    each = [run["summary"]["requests_per_s"] for run in found["runs"] if run["arm"] == "dense"]
    assert found["cost"]["good_requests"]["dense"] == pytest.approx(1e3 * 0.36 / 3600 / fmean(each), rel=0.05)
    assert found["cost"]["good_requests"]["ratio"]["point"] == pytest.approx(found["cost"]["blended"]["ratio"]["point"])
    assert "$ per 1,000 good requests" in Report(found).table() and found["load"]["slo"] == "e2e=10000ms"
    assert "good_requests" not in document(findings(OF_URLS))["cost"]
    none_good = document(findings(OF_URLS, replace(CLOSED, slo=parse("e2e=1ms"))))
    assert none_good["cost"]["good_requests"]["dense"] is None
