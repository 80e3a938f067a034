"""The highest rate that keeps an SLO: of simulated servers whose limit is known."""

import json
from dataclasses import replace
from math import exp, factorial, log, sqrt
from pathlib import Path
from statistics import fmean

import pytest
from queues import batched, queued

from twofour.bench.commands import INVALID
from twofour.bench.load.gates import Gate
from twofour.bench.load.run import Run
from twofour.bench.load.service import Service
from twofour.bench.load.slo import parse
from twofour.bench.load.workload import Lengths, Schedule
from twofour.bench.proof.batching import Steps
from twofour.bench.proof.simulation import open_loop, poisson
from twofour.bench.sweep import visit
from twofour.bench.sweep.document import document
from twofour.bench.sweep.limit import find_limits
from twofour.bench.sweep.load import Load
from twofour.bench.sweep.search import highest
from twofour.bench.sweep.table import table
from twofour.bench.targets.running import Running
from twofour.bench.traffic.traffic import Traffic
from twofour.cli import main
from twofour.prune.progress import silent

TOKEN_S = {"slow": 0.02, "quick": 0.01}  # by model
BOTH = [Running(name, Service(f"http://{name}", name)) for name in TOKEN_S]
TRAFFIC = Traffic(prompt_tokens=Lengths(5), output_tokens=Lengths(5), seed=1)
LOAD = Load(TRAFFIC, slo=parse("ttft_p95=220ms"), requests=1000)


def measured(service: Service, schedule: Schedule, progress: object) -> Run:
    return queued(service, schedule, TOKEN_S[service.model])


@pytest.fixture(autouse=True)
def simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visit, "measure", measured)


def waits_at_most(t: float, rate: float, takes_s: float) -> float:
    """The share of requests that wait no longer than t where every answer takes as long (M/D/1, Erlang's formula)."""
    terms = range(int(t / takes_s + 1e-9) + 1)
    sums = ((-rate * (t - k * takes_s)) ** k / factorial(k) * exp(rate * (t - k * takes_s)) for k in terms)
    return (1 - rate * takes_s) * sum(sums)


def known_limit(t: float, takes_s: float) -> float:
    low, high = 0.0, 1 / takes_s
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if waits_at_most(t, middle, takes_s) >= 0.95 else (low, middle)
    return low


def test_the_known_limit_of_a_queue_is_found_within_5_percent() -> None:
    # An answer of slow takes 100 ms, its first token 20: who waits 200 ms has it after 220.
    _, limits = find_limits(BOTH[:1], LOAD, 8, 0.02, silent)
    lows = [each.bracket.low or 0.0 for each in limits]
    assert exp(fmean(map(log, lows))) == pytest.approx(known_limit(0.2, 0.1), rel=0.05)
    assert all(
        each.bracket.high and each.bracket.high <= (each.bracket.low or 0) * 1.02 * (1 + 1e-9) for each in limits
    )


def test_the_limit_of_a_batching_server_is_found_within_5_percent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against one long run of the same server, whose line is not short for its end being near."""
    steps = Steps(base_s=0.010, read_s=3e-5, decode_s=2e-4, sequences=16)
    monkeypatch.setattr(visit, "measure", lambda service, schedule, progress: batched(service, schedule, steps))
    traffic = Traffic(prompt_tokens=Lengths(64, 0.3), output_tokens=Lengths(32, 0.3))

    def kept(rate: float) -> bool:
        waits = sorted(each.ttft for each in open_loop(steps, poisson(10_000, rate, 7, 64, 32)))
        return waits[9_500] <= 0.100

    truth = highest(kept, 20.0, 1.5, 0.01).low
    _, limits = find_limits(BOTH[:1], Load(traffic, parse("ttft_p95=100ms"), 1000), 5, 0.02, silent)
    assert truth and truth < steps.capacity(64, 32)
    assert exp(fmean(log(each.bracket.low or 0.0) for each in limits)) == pytest.approx(truth, rel=0.05)


def test_what_is_found_is_what_was_seen_and_later_searches_are_shorter() -> None:
    found, limits = find_limits(BOTH, replace(LOAD, requests=400), 3, 0.02, silent)
    assert [(each.server, each.round) for each in limits] == [
        *(("slow", 0), ("quick", 0), ("quick", 1), ("slow", 1), ("quick", 2), ("slow", 2)),
    ]
    for each in limits:
        own = [seen for seen in found.visits if (seen.server, seen.round) == (each.server, each.round)]
        kept = {seen.pace.rate: seen.run.slo and seen.run.slo.attained and not seen.over_capacity for seen in own}
        assert kept[each.bracket.low] is True and kept[each.bracket.high] is False
        assert each.bracket.low == max(rate for rate, well in kept.items() if rate and well)
        assert (own[0].pace.concurrency == 1) == (each.round == 0)  # alone, before anything is known
        assert {seen.run.schedule.made_of["seed"] for seen in own} == {1 + each.round}
    counts = [sum(seen.round == round_ for seen in found.visits) for round_ in range(3)]
    assert counts[1] < counts[0] and counts[2] < counts[0]


def test_limits_are_compared_round_by_round() -> None:
    slower = replace(LOAD, slo=parse("ttft_p95=220ms,e2e_p95=20s"), requests=300)
    found, limits = find_limits(BOTH, slower, 2, 0.02, silent)
    told = document(found, BOTH, slower, 2, limits)
    slow, quick = told["limits"]
    lows = {(each["server"], each["round"]): each["low"] for each in told["searches"]}
    ratios = [lows["quick", round_] / lows["slow", round_] for round_ in range(2)]
    assert quick["of_the_first"]["point"] == pytest.approx(sqrt(ratios[0] * ratios[1]))
    assert quick["rate"]["point"] == pytest.approx(sqrt(lows["quick", 0] * lows["quick", 1]))
    assert slow["of_the_first"]["point"] == 1 and not slow["at_least"] and slow["why"] == []
    assert quick["of_the_first"]["point"] > 2  # half the time a token, and so fewer that wait
    for each in told["searches"]:
        assert each["output_tokens_per_s"] == pytest.approx(5 * each["low"], rel=0.2)
        assert each["goodput_per_s"] <= each["output_tokens_per_s"] / 5 * 1.001
    assert json.dumps(told, allow_nan=False)


def test_where_one_at_a_time_is_too_slow_no_rate_is_tried() -> None:
    hopeless = replace(LOAD, slo=parse("e2e=90ms"))
    found, limits = find_limits(BOTH, hopeless, 1, 0.05, silent)
    assert (limits[0].bracket.low, limits[0].why) == (None, "alone")
    assert [seen.pace.concurrency for seen in found.visits if seen.server == "slow"] == [1]
    told = document(found, BOTH, hopeless, 1, limits)
    assert told["limits"][0]["rate"] is None and told["limits"][1]["of_the_first"] is None
    assert "none" in table(told) and "requests that come one at a time miss it, too" in table(told)


def late_from(rate: float, times: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The client is late at that rate and above, so many times."""
    left = [times]

    def seen(service: Service, schedule: Schedule, progress: object) -> Run:
        late = (schedule.made_of["rate"] or 0) >= rate and left[0] > 0
        left[0] -= late
        gate = Gate("send_lag_p99", 1.0, 0.01, "s", "the client is late") if late else None
        return queued(service, schedule, 0.004, gate)

    monkeypatch.setattr(visit, "measure", seen)


def test_where_the_client_is_late_the_server_may_do_more(monkeypatch: pytest.MonkeyPatch) -> None:
    late_from(100.0, 99, monkeypatch)
    found, limits = find_limits(BOTH[:1], replace(LOAD, slo=parse("e2e_p95=1s")), 1, 0.05, silent)
    assert limits[0].why == "client" and limits[0].bracket.high is None
    assert limits[0].bracket.low and 50 <= limits[0].bracket.low < 100
    told = document(found, BOTH[:1], LOAD, 1, limits)
    assert told["limits"][0]["at_least"] and not told["valid"] and "at least" in table(told)


def test_a_client_that_is_late_once_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    late_from(100.0, 1, monkeypatch)
    found, limits = find_limits(BOTH[:1], replace(LOAD, slo=parse("e2e_p95=1s")), 1, 0.05, silent)
    assert limits[0].why is None and limits[0].bracket.high and not any(seen.client_is_late for seen in found.visits)


def test_a_drift_is_chance_in_a_search_and_every_other_gate_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    small = replace(LOAD, requests=200)
    for name, counts in (("latency_drift", True), ("cpu_pressure", False)):
        gate = Gate(name, 1.0, 0.2, "share", "")
        monkeypatch.setattr(visit, "measure", lambda *asked, gate=gate, **_: queued(asked[0], asked[1], 0.02, gate))
        told = document(*find_limits(BOTH[:1], small, 1, 0.1, silent)[:1], BOTH[:1], small, 1, [])
        assert told["valid"] == counts and any(cell["invalid"] for cell in told["cells"]) != counts


def test_an_interrupt_leaves_whole_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(service: Service, schedule: Schedule, progress: object) -> Run:
        if schedule.made_of["seed"] == 2:
            raise KeyboardInterrupt
        return measured(service, schedule, progress)

    monkeypatch.setattr(visit, "measure", seen)
    found, limits = find_limits(BOTH, replace(LOAD, requests=300), 2, 0.1, silent)
    assert found.cut_off and [each.round for each in limits] == [0, 0]
    told = document(found, BOTH, LOAD, 2, limits)
    assert not told["valid"] and not told["complete"] and "CUT OFF: searches done: 2 of 4" in table(told)


def test_the_verb_searches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sweep.json"
    words = ["bench", "sweep", "slow=http://a#slow", "quick=http://b#quick", "--slo", "ttft_p95=220ms", "--rounds", "2"]
    small = ["--prompt-tokens", "5", "--output-tokens", "5", "--within", "0.1", "--out", str(out)]
    status = main([*words, *small])
    printed, found = capsys.readouterr().out, json.loads(out.read_text())
    assert status == (0 if found["valid"] else INVALID)
    assert [limit["server"] for limit in found["limits"]] == ["slow", "quick"]
    assert found["load"]["slo"] == "ttft_p95=220ms" and found["highest"] is None
    rates = [f"{limit['rate']['point']:.3f} requests/s" for limit in found["limits"]]
    assert all(rate in printed for rate in rates)
