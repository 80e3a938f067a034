import argparse
import json
from dataclasses import replace
from pathlib import Path

import pytest

from twofour.bench.commands import INVALID, report, selftest
from twofour.bench.load.records import Chunks, Record
from twofour.bench.proof import defects
from twofour.bench.proof.defects import Finding
from twofour.bench.proof.mock import Script, Served
from twofour.bench.proof.selftest import Measured, Speed, document, table
from twofour.bench.proof.truth import Added, added, against, closed, pairs, tpot
from twofour.prune.errors import InputError

GOOD = Measured(4, 400.0, Added(20, 0.1, 0.0007, 0.003, 0.01, 0.0005), [])
SPEED = Speed(1700.0, 42000.0)
FOUND = [Finding("answers end early", "detected", "gate output_length")]


def with_added(**more: float) -> Measured:
    return replace(GOOD, added=replace(GOOD.added, **more))


def test_a_load_is_honest_where_the_client_adds_little_and_no_gate_fails() -> None:
    assert GOOD.honest and GOOD.verdict == "honest"
    for late in (with_added(mean_s=0.0016), with_added(p99_s=0.0051), with_added(tpot_error=0.0021)):
        assert not late.honest and late.verdict.startswith("BLURRED")
        flagged = replace(late, flagged=["loop_lag_p99"])
        assert not flagged.honest and flagged.verdict == "flagged: loop_lag_p99"
    assert not replace(GOOD, flagged=["cpu_pressure"]).honest


def test_only_what_blurs_unnoticed_fails() -> None:
    flagged = replace(with_added(mean_s=1.0), streams=32, flagged=["loop_lag_p99"])
    found = document([GOOD, flagged], SPEED, FOUND, apart=True)
    assert (found["valid"], found["honest_streams"]) == (True, 4)
    assert not document([GOOD, with_added(mean_s=1.0)], SPEED, FOUND, apart=True)["valid"]
    assert not document([GOOD], SPEED, [Finding("x", "missed", "y")], apart=True)["valid"]
    assert document([GOOD], SPEED, [Finding("x", "not measured", "y")], apart=True)["valid"]


def test_the_table_says_what_may_be_measured_here() -> None:
    said = table(document([GOOD], SPEED, FOUND, apart=True))
    assert "       4       400    100.00        0.70      3.00       0.05%   honest" in said
    assert "1,700 streamed requests/s of 8 tokens, 42,000 tokens/s in bursts" in said
    assert "  detected      answers end early: gate output_length" in said
    assert "measures up to 4 streams honestly" in said
    assert "Not one of these loads was honest" in table(document([], Speed(None, None), FOUND, apart=False))


def test_what_the_client_adds_by_hand() -> None:
    run, mock = against(Script(first_token_s=0.01, token_s=0.002), closed(6, 8, 4, 1, sigma=0.0))
    assert [record.index for record, _ in pairs(run, mock)] == list(range(6))
    for record, served in pairs(run, mock):  # a client that adds 2 ms to each first token, and takes 1.5 ms a token
        served.received_at, served.written = 1.0, [(1.1, 1), (1.101, 1), (1.102, 1), (1.103, 1)]
        record.sent_at, record.chunks = 2.0, Chunks.of((2.102 + 0.0015 * at, 1) for at in range(4))
        record.done_at = 2.2
    found = added(run, mock)
    assert found.requests == 6
    assert (found.ttft_s, found.mean_s, found.p99_s) == pytest.approx((0.1, 0.002, 0.002))
    assert (found.tpot_s, found.tpot_error) == pytest.approx((0.001, 0.5))


def test_one_chunk_has_no_time_between_tokens() -> None:
    assert tpot(Served(0.0, "", {}, {}, written=[(1.0, 3)])) is None
    assert tpot(Served(0.0, "", {}, {}, written=[(1.0, 2), (3.0, 4)])) == 0.5
    assert Record(0, 0.0).chunks == []


def test_the_verb(capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(defects, "DEFECTS", defects.DEFECTS[7:9])  # test_defects tries all
    out, parser = tmp_path / "selftest.json", argparse.ArgumentParser()
    selftest.add_arguments(parser)
    status = selftest.run(parser.parse_args(["--quick", "--streams", "2", "--out", str(out)]))
    printed, written = capsys.readouterr().out, json.loads(out.read_text())
    assert status == (0 if written["valid"] else INVALID)
    assert [load["streams"] for load in written["loads"]] == [2]
    assert len(written["defects"]) == 2 and written["command"][0] == "twofour"
    again = argparse.ArgumentParser()
    report.add_arguments(again)
    report.run(again.parse_args([str(out)]))
    assert capsys.readouterr().out == printed
    with pytest.raises(InputError, match="--streams is at least 1"):
        selftest.run(parser.parse_args(["--streams", "0"]))
