"""Several runs of one load: intervals by hand, through a real socket, and as a gate reads them."""

import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from bench_findings import CLOSED, run

from twofour.bench.commands import INVALID, schedule_flags
from twofour.bench.load import gaps, metrics, repeat
from twofour.bench.load import run as load
from twofour.bench.load.gates import Gate
from twofour.bench.load.records import Chunks
from twofour.bench.load.repeat import Repeated
from twofour.bench.load.run import CutOff, Run
from twofour.bench.proof.mock import Script, serving
from twofour.bench.stats import matched_ratio, replicated
from twofour.cli import main
from twofour.prune.errors import ServerError

RUNS = [run(CLOSED, round_, token_s) for round_, token_s in enumerate((0.010, 0.011, 0.012))]


def test_the_intervals_are_those_over_runs() -> None:
    found = repeat.percentiles(RUNS)
    each = [metrics.quantities(metrics.steady(one.records)) for one in RUNS]
    assert found["ttft"]["p50"] == replicated([of_one["ttft"] for of_one in each], 50)
    assert found["ttft"]["p99"] is None  # too few in all
    pools = [gaps.pooled(metrics.steady(one.records))[0].tolist() for one in RUNS]
    assert found["itl_gap"]["p50"] == replicated(pools, 50)
    speeds = [one.summary.output_tokens_per_s or 0.0 for one in RUNS]
    mean, rate = matched_ratio([1.0] * 3, speeds), repeat.rates(RUNS)["output_tokens_per_s"]
    assert rate and (rate.point, rate.low, rate.high, rate.n) == (mean.point, mean.low, mean.high, 3)
    assert rate.low is not None and rate.high is not None and rate.low < min(speeds) < rate.point < rate.high


def test_chunks_that_came_together_have_no_logarithm_and_failures_are_left_out() -> None:
    runs = [run(CLOSED, round_, 0.01) for round_ in range(2)]
    for together, known in ((3, True), (8, False)):  # of 12 requests: a few gaps of 0 are no median of 0
        for record in runs[0].records[:together]:
            record.chunks = Chunks([record.chunks.at[0]] * len(record.chunks), record.chunks.tokens)
        assert (repeat.percentiles(runs)["itl_gap"]["p50"] is not None) == known
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
    for done, said in (
        (Repeated(spoiled), f"INVALID: a gate failed with seed {seed}: do not quote these numbers"),
        (Repeated(RUNS, cut_off=True), "CUT OFF before the end: do not quote these numbers"),
        (Repeated(RUNS), "VALID"),
    ):
        kept = repeat.document(done)
        assert repeat.table(done, kept).splitlines()[-1] == repeat.of_document(kept).splitlines()[-1] == said


URL = "http://127.0.0.1:1"  # nothing is sent there


def ended(
    third: BaseException | int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> tuple[int, dict[str, Any] | None]:
    """The status and document of five runs of which something ends the third. An int is a signal."""
    runs = iter(RUNS[:2])

    def measure(*_: object) -> Run:
        if (one := next(runs, None)) is not None:
            return one
        if isinstance(third, int):
            os.kill(os.getpid(), third)
        raise third if isinstance(third, BaseException) else AssertionError("the signal did not come")

    monkeypatch.setattr(load, "measure", measure)
    out = tmp_path / "kept.json"
    try:
        status = main(["bench", "run", URL, "--model", "m", "--requests", "8", "--repeat", "5", "--out", str(out)])
    except SystemExit as end:
        status = int(str(end.code))
    return status, json.loads(out.read_text()) if out.exists() else None


@pytest.mark.parametrize(
    ("third", "expected"),
    [
        (signal.SIGINT, 130),
        (signal.SIGTERM, 143),
        (ServerError("every request of the warm-up failed"), INVALID),
        (CutOff(replace(RUNS[2], cut_off=True)), 130),
    ],
)
def test_what_ends_a_later_run_does_not_lose_those_before_it(
    third: BaseException | int,
    expected: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    status, kept = ended(third, tmp_path, monkeypatch)
    said = capsys.readouterr()
    assert status == expected and kept and kept["cut_off"] and not kept["valid"] and len(kept["runs"]) == 2
    assert "CUT OFF" in said.out and ("every request of the warm-up failed" in said.err) == (expected == INVALID)


def test_with_no_run_there_is_nothing_to_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "RUNS", [])
    assert ended(signal.SIGTERM, tmp_path, monkeypatch) == (143, None)
    assert ended(ServerError("gone"), tmp_path, monkeypatch) == (1, None)


def test_a_failed_gate_is_named_with_its_seed_and_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = replace(RUNS[0], gates=[Gate("cpu_pressure", 1.0, 0.1, "share", "stop what else runs")])
    runs = iter([bad, RUNS[1]])
    monkeypatch.setattr(load, "measure", lambda *_: next(runs))
    assert main(["bench", "run", URL, "--model", "m", "--requests", "8", "--repeat", "2"]) == INVALID
    seed = bad.schedule.made_of["seed"]
    assert f"invalid run, seed {seed}: cpu_pressure: stop what else runs" in capsys.readouterr().err


def test_a_schedule_is_made_on_its_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    order = list[str]()
    read, runs = schedule_flags.read, iter(RUNS)
    monkeypatch.setattr(schedule_flags, "read", lambda args: (order.append(f"made {args.seed}"), read(args))[1])
    monkeypatch.setattr(load, "measure", lambda *_: (order.append("sent"), next(runs))[1])
    main(["bench", "run", URL, "--model", "m", "--requests", "8", "--seed", "7", "--repeat", "2"])
    assert order == ["made 7", "sent", "made 8", "sent"]


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
