"""Several runs of one load: intervals by hand, through a real socket, and as a gate reads them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from bench_findings import CLOSED, run

from twofour.bench.commands import INVALID
from twofour.bench.load import metrics, repeat
from twofour.bench.load.gates import Gate
from twofour.bench.load.records import Chunks
from twofour.bench.load.repeat import Repeated
from twofour.bench.proof.mock import Script, serving
from twofour.bench.stats import matched_ratio, replicated
from twofour.cli import main

RUNS = [run(CLOSED, round_, token_s) for round_, token_s in enumerate((0.010, 0.011, 0.012))]


def test_the_intervals_are_those_over_runs() -> None:
    found = repeat.percentiles(RUNS)
    each = [metrics.quantities(metrics.steady(one.records)) for one in RUNS]
    assert found["ttft"]["p50"] == replicated([of_one["ttft"] for of_one in each], 50)
    assert found["ttft"]["p99"] is None  # too few in all
    gaps = [metrics.pooled(metrics.steady(one.records))[0].tolist() for one in RUNS]
    assert found["itl_gap"]["p50"] == replicated(gaps, 50)
    speeds = [one.summary.output_tokens_per_s or 0.0 for one in RUNS]
    mean, rate = matched_ratio([1.0] * 3, speeds), repeat.rates(RUNS)["output_tokens_per_s"]
    assert rate and (rate.point, rate.low, rate.high, rate.n) == (mean.point, mean.low, mean.high, 3)
    assert rate.low is not None and rate.high is not None and rate.low < min(speeds) < rate.point < rate.high


def test_chunks_that_came_together_have_no_logarithm_and_failures_are_left_out() -> None:
    runs = [run(CLOSED, round_, 0.01) for round_ in range(2)]
    for record in runs[0].records[:3]:
        record.chunks = Chunks([record.chunks.at[0]] * len(record.chunks), record.chunks.tokens)
    assert repeat.percentiles(runs)["itl_gap"]["p50"] is None
    whole = repeat.percentiles(runs)["ttft"]["p50"]
    for one in runs[1].records:
        one.error, one.chunks = "reset: gone", Chunks()
    failed = repeat.percentiles(runs)["ttft"]["p50"]
    assert whole and whole.n == 2 and failed is None  # a run has nothing


def test_one_gate_that_failed_spoils_all() -> None:
    failed = Gate("cpu_pressure", 1.0, 0.1, "share", "stop it")
    spoiled = [RUNS[0], replace(RUNS[1], gates=[failed])]
    assert not Repeated(spoiled).valid and Repeated(RUNS).valid and not Repeated(RUNS, cut_off=True).valid
    seed = RUNS[1].schedule.made_of["seed"]
    assert f"a gate failed with seed {seed}" in repeat.table(Repeated(spoiled))
    assert "CUT OFF" in repeat.table(Repeated(RUNS, cut_off=True)) and repeat.table(Repeated(RUNS)).endswith("\nVALID")


def test_the_verb_its_document_and_its_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "kept.json"
    words = ["--requests", "8", "--prompt-tokens", "8", "--output-tokens", "4", "--seed", "5", "--repeat", "3"]
    with serving(Script(token_s=0.01)) as mock:
        status = main(["bench", "run", mock.url, *words, "--slo", "ttft=9s", "--out", str(out)])
    shown, kept = capsys.readouterr().out, json.loads(out.read_text())
    assert status == (0 if kept["valid"] else INVALID) and "3 runs, seeds 5, 6, 7" in shown
    assert (kept["kind"], kept["schema_version"], kept["cut_off"]) == ("twofour.bench.repeat", 1, False)
    assert [one["load"]["seed"] for one in kept["runs"]] == [5, 6, 7] and "records" not in kept["runs"][0]
    assert (
        len({one["schedule_sha256"] for one in kept["runs"]})
        == len({one["load"]["nonce"] for one in kept["runs"]})
        == 3
    )
    assert [one["slo"]["slo"] for one in kept["runs"]] == ["ttft=9000ms"] * 3
    tpot = kept["percentiles"]["tpot"]["p50"]
    assert tpot["n"] == 3 and tpot["low"] < tpot["point"] < tpot["high"]
    assert len(mock.served) == 3 * (8 + 5)
    assert main(["bench", "report", str(out)]) == 0
    assert f"{1000 * tpot['point']:.2f} [{1000 * tpot['low']:.2f}, " in capsys.readouterr().out
    kept["valid"] = True
    new = tmp_path / "new.json"
    for name in (out, new):
        name.write_text(json.dumps(kept))
    assert main(["bench", "gate", str(out), str(new), "--max-regress", "tpot=3%"]) == 0
    for one in kept["runs"]:
        one["summary"]["tpot"]["mean"] *= 1.1
    new.write_text(json.dumps(kept))
    assert main(["bench", "gate", str(out), str(new), "--max-regress", "tpot=3%"]) == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--repeat", "0"], "give 1 to 100"),
        (["--repeat", "101"], "give 1 to 100"),
        (["--repeat", "2", "--nonce", "mine"], "--nonce is of one run"),
        (["--repeat", "2", "--schedule", "plan.jsonl"], "--schedule is of one run"),
        (["--repeat", "2", "--csv", "rows.csv"], "--csv is of one run"),
        (["--repeat", "2", "--format", "vllm-json"], "--format vllm-json is of one run"),
    ],
)
def test_what_is_of_one_run_is_refused(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "run", "http://127.0.0.1:1", *words]) == 1
    assert why in capsys.readouterr().err
