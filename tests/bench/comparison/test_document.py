"""The figures of a report, its notes and its table."""

import re
from dataclasses import replace
from datetime import date
from statistics import geometric_mean
from typing import Any

import numpy as np
import pytest
from bench_findings import CLOSED, OF_URLS, PRICE, SPEEDS, findings, run

from twofour.bench.comparison.document import document
from twofour.bench.comparison.experiment import ArmFacts
from twofour.bench.comparison.figures import verdict
from twofour.bench.load import metrics
from twofour.bench.load.gates import Gate
from twofour.bench.report import rows
from twofour.bench.report.arms import ARMS
from twofour.bench.report.forms import Report


@pytest.fixture(scope="module")
def whole() -> dict[str, Any]:
    return document(findings(SPEEDS))


@pytest.fixture(scope="module")
def of_urls() -> dict[str, Any]:
    return document(findings(OF_URLS, placement=None))


def test_figures_are_geometric_means_and_their_quotient_is_the_ratio(whole: dict[str, Any]) -> None:
    for name in ("tpot_mean", "itl_gap_p50", "e2e_p50", "ttft_p50"):
        found = whole["metrics"][name]
        assert found["ratio"]["point"] == pytest.approx(found["sparse"] / found["dense"])
        assert found["verdict"] == "better"
    tpot = whole["metrics"]["tpot_mean"]
    assert tpot["dense"] == pytest.approx(geometric_mean(SPEEDS["dense"]))
    for base, compared in {"dense": tpot, "torch_dense": tpot["to_torch_dense"]}.items():
        by_hand = geometric_mean([b / a for a, b in zip(SPEEDS[base], SPEEDS["sparse"], strict=True)])
        assert compared["ratio"]["point"] == pytest.approx(by_hand)
        assert compared["ratio"]["low"] < by_hand < compared["ratio"]["high"]
    assert tpot["torch_dense"] == pytest.approx(geometric_mean(SPEEDS["torch_dense"]))


def test_which_kernels_the_baselines_ran_and_how_they_compare(whole: dict[str, Any]) -> None:
    best = whole["baselines"]["best_dense"]
    assert best["kernels"] == {"dense": 210} and best["tpot_to_torch_dense"]["verdict"] == "better"
    assert whole["baselines"]["torch_dense"]["kernels"] == {"torch_dense": 210}
    assert "Attention" not in " ".join(whole["notes"])


def test_a_best_dense_that_is_not_the_best_is_noted() -> None:
    swapped = {"torch_dense": SPEEDS["dense"], "dense": SPEEDS["torch_dense"], "sparse": SPEEDS["sparse"]}
    notes = " ".join(document(findings(swapped))["notes"])
    assert re.search(r"best dense took 1\.4\d\dx as long per token as torch dense", notes)


def test_two_baselines_on_the_same_kernels_are_noted() -> None:
    found = findings(SPEEDS)
    same = {**found.arms, "torch_dense": found.arms["dense"]}
    assert any("ran the same kernels" in note for note in document(replace(found, arms=same))["notes"])
    assert not any("ran the same kernels" in note for note in document(found)["notes"])


def test_two_urls_have_one_dense_of_unknown_merit(of_urls: dict[str, Any]) -> None:
    assert of_urls["baselines"] == {"torch_dense": None, "best_dense": None}
    tpot = of_urls["metrics"]["tpot_mean"]
    assert tpot["torch_dense"] is None and tpot["to_torch_dense"] is None and tpot["verdict"] == "better"
    assert of_urls["memory"]["torch_dense"] is None
    assert "torch dense" not in Report(of_urls).table() + Report(of_urls).html()
    assert "best dense would be is not known" in " ".join(of_urls["notes"])


def test_random_weights_are_on_the_label() -> None:
    random = document(findings(SPEEDS, random_weights="llama-3.2-1b", quality=None))
    assert random["random_weights"] == "llama-3.2-1b"
    assert "weights are random, in the shape of llama-3.2-1b" in Report(random).table()
    assert "weights are random, in the shape of llama-3.2-1b" in Report(random).html()


def test_faster_is_better_for_throughput_too(whole: dict[str, Any]) -> None:
    found = whole["metrics"]["output_tokens_per_s"]
    assert found["ratio"]["low"] > 1 and found["verdict"] == "better"


def test_cost_is_the_price_over_the_throughput(whole: dict[str, Any]) -> None:
    # 20 prompt and 10 output tokens in 11 times token_s.
    cost = whole["cost"]["blended"]
    for name in SPEEDS:
        token_s = geometric_mean(SPEEDS[name])
        assert cost[name] == pytest.approx(0.36 / 3600 * 1e6 / (30 / (11 * token_s)), rel=0.1)
    assert cost["ratio"]["point"] * cost["dense_over_sparse"]["point"] == pytest.approx(1)
    assert cost["ratio"]["low"] * cost["dense_over_sparse"]["high"] == pytest.approx(1)
    assert whole["cost"]["price"]["as_of"] == "2026-09-16"


def test_the_cost_ratio_needs_no_price(whole: dict[str, Any]) -> None:
    free = document(findings(SPEEDS, price=None))
    assert free["cost"]["price"] is None and free["cost"]["blended"]["dense"] is None
    assert free["cost"]["blended"]["ratio"] == pytest.approx(whole["cost"]["blended"]["ratio"])
    assert any("none is known for this machine; give --price-per-hour" in note for note in free["notes"])
    why = document(findings(SPEEDS, price=None, unpriced="the price table has no NVIDIA H20"))
    assert "No price: the price table has no NVIDIA H20; give --price-per-hour. The cost" in " ".join(why["notes"])


def test_an_old_price_is_noted() -> None:
    old = document(findings(SPEEDS, price=replace(PRICE, as_of=date(2026, 1, 1))))
    assert any("days old" in note for note in old["notes"])


def test_a_price_is_shown_with_its_age_at_the_run() -> None:
    report = Report(document(findings(SPEEDS)))
    assert "(a list, as of 2026-09-16, 4 days before the run)." in report.table()
    assert "small box: a list, as of 2026-09-16, 4 days before the run<" in report.html()
    given = Report(document(findings(SPEEDS, price=replace(PRICE, as_of=None))))
    assert "for small box (a list)." in given.table() and "days before" not in given.html()


def test_an_open_loop_has_no_cost_and_waits_count() -> None:
    open_loop = replace(CLOSED, concurrency=None, rate=5.0)
    found = document(findings(SPEEDS, open_loop))
    assert found["cost"] is None and found["primary"] == "e2e_p50"
    assert "closed loop" in " ".join(found["notes"])
    assert "5 requests/s" in Report(found).table()


def test_no_difference_is_not_called_one() -> None:
    noise = {**SPEEDS, "dense": [0.010, 0.011, 0.010, 0.011], "sparse": [0.011, 0.010, 0.011, 0.010]}
    found = document(findings(noise))
    assert found["metrics"]["tpot_mean"]["verdict"] == "unclear"
    assert "no clear difference" in Report(found).table()


def test_one_round_proves_nothing() -> None:
    found = document(findings(SPEEDS, replace(CLOSED, rounds=1)))
    assert found["metrics"]["tpot_mean"]["ratio"]["low"] is None
    assert found["metrics"]["tpot_mean"]["verdict"] == "unclear"


def test_a_percentile_that_a_round_has_too_few_requests_for_is_that_of_all_rounds() -> None:
    found = findings(SPEEDS, replace(CLOSED, requests=16))
    p95 = document(found)["metrics"]["ttft_p95"]
    for arm in ARMS:
        runs = [each.run for each in found.runs if each.arm == arm]
        assert all(run.summary.ttft.p95 is None and run.summary.measured == 16 for run in runs)
        times = [record.chunks[0].at - (record.sent_at or 0.0) for run in runs for record in run.records]
        assert p95[arm] == pytest.approx(np.percentile(times, 95))
    assert p95["pooled"] and p95["verdict"] == "unclear"
    assert p95["ratio"] == {"point": pytest.approx(p95["sparse"] / p95["dense"]), "low": None, "high": None, "n": 1}
    assert p95["to_torch_dense"]["ratio"]["point"] == pytest.approx(p95["sparse"] / p95["torch_dense"])
    assert document(found)["metrics"]["ttft_p50"]["pooled"] is False
    few = document(findings(SPEEDS, replace(CLOSED, requests=12)))["metrics"]["ttft_p95"]
    assert few["dense"] is None and few["ratio"] is None  # 48 are too few, too


def test_a_figure_that_one_run_lacks_is_null() -> None:
    found = findings(SPEEDS)
    failed = [replace(record, error="reset: gone") for record in found.runs[-1].run.records]
    last = replace(found.runs[-1].run, records=failed, summary=metrics.summarise(failed, 100.0))
    few = document(replace(found, runs=[*found.runs[:-1], replace(found.runs[-1], run=last)]))
    ttft = few["metrics"]["ttft_p50"]
    assert found.runs[-1].arm == "dense"
    assert (ttft["dense"], ttft["ratio"], ttft["verdict"], ttft["pooled"]) == (None, None, None, False)
    assert ttft["torch_dense"] and ttft["sparse"] and ttft["to_torch_dense"]["ratio"]
    assert "not measured" in Report(few).table()


@pytest.mark.parametrize(
    ("ratio", "better", "low", "high", "word"),
    [
        (0.8, "lower", 0.7, 0.9, "better"),
        (0.8, "higher", 0.7, 0.9, "worse"),
        (1.2, "higher", 1.1, 1.3, "better"),
        (1.2, "lower", 1.1, 1.3, "worse"),
        (1.2, "lower", 0.9, 1.3, "unclear"),
        (1.0, "lower", 1.0, 1.2, "unclear"),
        (1.001, "lower", None, None, "same"),
        (1.01, "lower", None, None, "worse"),
        (0.5, "lower", None, None, "better"),
        (None, "lower", None, None, None),
    ],
)
def test_verdicts(ratio: float | None, better: str, low: float | None, high: float | None, word: str | None) -> None:
    assert verdict(ratio, better, low, high) == word


def test_memory_and_prefix_hits(whole: dict[str, Any]) -> None:
    half = {"ratio": 0.5, "verdict": "better"}
    assert whole["memory"]["linear_bytes"] == half | {"to_torch_dense": half}
    assert whole["memory"]["weight_bytes"]["ratio"] == pytest.approx(900 / 1400)
    assert whole["arms"]["dense"]["prefix_hit_share"] == pytest.approx(100 / 2000)


def test_servers_that_say_nothing_are_null() -> None:
    silent = {name: ArmFacts("http://h:1", "m", None, None, None, None) for name in OF_URLS}
    found = document(findings(OF_URLS, arms=silent, quality=None, price=None, placement=None))
    assert found["memory"]["dense"] is None and found["memory"]["weight_bytes"]["ratio"] is None
    text, page = Report(found).table(), Report(found).html()
    assert text.count("not measured") >= 8
    assert "0.0 MB" not in text + page and "None" not in text + page


def test_a_failed_gate_makes_it_invalid() -> None:
    bad = Gate("cpu_pressure", 0.4, 0.1, "share", "stop the neighbour")
    found = findings(SPEEDS)
    runs = [*found.runs[:-1], replace(found.runs[-1], run=run(CLOSED, 3, 0.016, bad))]
    report = Report(document(replace(found, runs=runs)))
    gate = next(gate for gate in report.document["gates"] if gate["name"] == "cpu_pressure")
    assert (gate["value"], gate["failed_runs"], gate["runs"], gate["passed"]) == (0.4, 1, 12, False)
    assert not report.valid
    assert "INVALID: do not quote" in report.table() and "failed in 1 of 12 runs" in report.table()
    assert "40.0% at worst" in report.html()


def test_every_request_is_on_record(whole: dict[str, Any]) -> None:
    assert [(each["round"], each["arm"]) for each in whole["runs"]] == [
        *((0, "torch_dense"), (0, "dense"), (0, "sparse"), (1, "sparse"), (1, "dense"), (1, "torch_dense")),
        *((2, "dense"), (2, "sparse"), (2, "torch_dense"), (3, "torch_dense"), (3, "sparse"), (3, "dense")),
    ]
    assert all(len(each["records"]) == 12 for each in whole["runs"])
    assert whole["load"]["order"][1] == ["sparse", "dense", "torch_dense"]


def test_the_table_a_person_reads(whole: dict[str, Any]) -> None:
    text = Report(whole).table()
    main, _, torch = text.partition("Against torch dense")
    lines = {line[:34].strip(): line.split() for line in main.splitlines()}
    by_torch = {line[:34].strip(): line.split() for line in torch.splitlines()}
    assert lines["perplexity"] == ["perplexity", "17.2", "24.9", "1.448x", "worse"]
    assert lines["same likeliest token as dense"][-3:] == ["71.2", "%", "worse"]
    assert lines["of it in the linears"][-2:] == by_torch["of it in the linears"][-2:] == ["0.500x", "better"]
    tpot = "inter-token latency (TPOT, mean)"
    assert lines[tpot][4:8] == ["12.7", "ms", "6.42", "ms"] and by_torch[tpot][4:8] == ["18.8", "ms", "6.42", "ms"]
    assert "perplexity" not in by_torch  # quality is measured once
    assert "ran:   torch dense: torch_dense for 210 linears; best dense: dense for 210 linears; 2:4: sparse" in text
    assert "Paris, dense." in text and "Paris, sparse." in text
    assert "$0.36 per hour for small box (a list, as of 2026-09-16, " in text
    assert "2 at a time, prompts of 20 and answers of 10 tokens" in text
    claim = r"cost per token: 0\.\d{3}x \[0\.\d{3}, 0\.\d{3}\], better at this load; against torch dense 0\."
    assert re.search(claim, " ".join(text.split()))


@pytest.mark.parametrize(
    ("value", "text"), [(0.0123456, "0.0123"), (1.0, "1.00"), (17.2, "17.2"), (99.96, "100"), (12345.6, "12,346")]
)
def test_three_digits(value: float, text: str) -> None:
    assert rows.plain(value).removesuffix(".0") == text


@pytest.mark.parametrize(
    ("kernels", "said"),
    [
        ({"reference": 210}, "210 linears of the 2:4 model were expanded to dense"),
        ({"cpu": 200, "dense": 10}, "10 linears of the 2:4 model were kept dense"),
        ({"cpu": 210}, None),
    ],
)
def test_a_2_4_model_that_was_not_multiplied_as_one_says_so(kernels: dict[str, int], said: str | None) -> None:
    found = findings(SPEEDS)
    after = found.arms["sparse"].after
    assert after is not None
    arms = {**found.arms, "sparse": replace(found.arms["sparse"], after=replace(after, kernels=kernels))}
    notes = document(replace(found, arms=arms))["notes"]
    told = [note for note in notes if "linears of the 2:4 model" in note]
    assert told == [] if said is None else said in told[0]


def test_where_2_4_does_not_pay_a_note_says_so(whole: dict[str, Any]) -> None:
    assert not any("at this load, and dense loses nothing" in note for note in whole["notes"])
    slow = document(findings({**SPEEDS, "sparse": [0.014, 0.029, 0.017, 0.016]}))["notes"][0]
    assert slow == "Attention: 2:4 does not pay at this load, and dense loses nothing: take dense."
    alike = document(
        findings({**SPEEDS, "dense": [0.010, 0.011, 0.010, 0.011], "sparse": [0.011, 0.010, 0.011, 0.010]})
    )
    assert alike["notes"][0].startswith("Attention: 2:4 buys nothing clear at this load")


def test_the_rival_in_bytes_is_named_where_it_was_no_arm() -> None:
    found = findings(SPEEDS)
    for flags, said in ((["--kernels", "auto"], True), (["--dense-values", "int8"], False)):
        dense = replace(found.arms["dense"], command=["python", "-m", "twofour", "serve", "m", *flags])
        notes = document(replace(found, arms={**found.arms, "dense": dense}))["notes"]
        assert any("Dense in int8 (--dense-values int8) was no arm here" in note for note in notes) == said
    assert not any("was no arm here" in note for note in document(found)["notes"])  # not our servers
