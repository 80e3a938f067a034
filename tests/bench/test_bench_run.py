import argparse
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from twofour.bench import run_command
from twofour.bench.mock import Script, serving
from twofour.prune.errors import InputError, OutputError, ServerError


def bench(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    run_command.add_arguments(parser)
    small = ["--prompt-tokens", "8", "--output-tokens", "6", "--requests", "12"]
    return run_command.run(parser.parse_args([*small, *arguments]))


def failed_gates(document: dict[str, list[dict[str, object]]]) -> set[object]:
    return {gate["name"] for gate in document["gates"] if gate["passed"] is False}


MACHINE = {"send_lag_p99", "loop_lag_p99", "cpu_pressure", "latency_drift"}  # gates that a busy test machine may fail


def test_a_run_as_json(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    with serving(Script(role_chunk=True)) as mock:
        status = bench(mock.url, "--json", "--concurrency", "1", "--seed", "5", "--out", str(out))
    shown, written = json.loads(capsys.readouterr().out), json.loads(out.read_text())
    records = written.pop("records")
    assert shown == written
    assert failed_gates(shown) <= MACHINE
    assert status == (0 if shown["valid"] else run_command.INVALID)
    assert shown["load"]["model"] == "mock" and shown["load"]["seed"] == 5
    assert shown["summary"]["completed"] == len(records) == 12
    assert shown["summary"]["ttft"]["p50"] > 0 and shown["summary"]["ttft"]["p99"] is None
    assert all(0 <= record["sent_at"] <= record["chunks"][0][0] <= record["done_at"] for record in records)
    assert [sum(tokens for _, tokens in record["chunks"]) for record in records] == [6] * 12


def test_warm_up_and_run_share_no_prompt() -> None:
    with serving(Script()) as mock:
        bench(mock.url)
    prompts = [served.body["prompt"] for served in mock.served]
    assert len(prompts) == 12 + 5  # the warm-up: one alone, then as many as at once
    assert len({" ".join(prompt.split()[:4]) for prompt in prompts}) == len({*prompts}) == len(prompts)


def test_a_person_sees_numbers_gates_and_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Script(stop_after=2, refuse_every=4)) as mock:
        status = bench(mock.url, "--rate", "500")
    out, err = capsys.readouterr()
    assert status == run_command.INVALID
    assert "500 requests/s, Poisson" in out
    assert "3 x status 503: the mock refuses" in out or "4 x status 503: the mock refuses" in out
    assert "n < 299" in out
    assert "FAILED        output_length: 100.0%, at most 0.5%" in out
    assert out.endswith("INVALID: do not quote these numbers\n")
    assert "invalid run: output_length" in err
    assert "load 12/12" in err


def test_vllms_names_and_definitions(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    with serving(Script(token_s=0.002, tokens_per_chunk=2)) as mock:
        bench(mock.url, "--json", "--format", "vllm-json", "--out", str(out))
    flat, full = json.loads(capsys.readouterr().out), json.loads(out.read_text())
    assert flat.items() <= full.items()
    assert (flat["completed"], flat["failed"], flat["total_output_tokens"]) == (12, 0, 72)
    assert flat["output_throughput"] == pytest.approx(72 / flat["duration"])
    decode = [e2e - ttft for e2e, ttft in zip(full["latencies"], full["ttfts"], strict=True)]
    assert flat["mean_tpot_ms"] == pytest.approx(1000 * sum(decode) / 12 / 5)
    gaps = [gap for gaps in full["itls"] for gap in gaps]
    assert len(gaps) == 12 * 2
    assert flat["mean_itl_ms"] == pytest.approx(1000 * sum(gaps) / len(gaps))
    assert flat["p99_ttft_ms"] == pytest.approx(1000 * np.percentile(full["ttfts"], 99))
    assert {"p95_ttft_ms", "p99_ttft_ms", "p99_itl_ms"} < set(flat["too_few_values_for"])
    assert "p50_ttft_ms" not in flat["too_few_values_for"]
    assert flat["schema_version"] == 2 and flat["valid"] == (not flat["failed_gates"])


def test_wrong_calls_are_refused_before_any_load(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    with serving(Script()) as mock:
        for arguments, error in (
            (["--out", str(taken)], OutputError),
            (["--out", str(tmp_path / "missing" / "run.json")], OutputError),
            (["--api-key-file", str(tmp_path / "none")], InputError),
            (["--concurrency", "0"], InputError),
            (["--rate", "-1"], InputError),
            (["--timeout", "0"], InputError),
            (["--requests", "0"], InputError),
            (["--output-tokens", "x"], InputError),
        ):
            with pytest.raises(error):
                bench(mock.url, *arguments)
    assert mock.served == []
    assert list(tmp_path.iterdir()) == [taken]


def test_a_server_that_fails_is_named() -> None:
    with (
        serving(Script(refuse_every=1)) as mock,
        pytest.raises(ServerError, match="status 503: the mock refuses"),
    ):
        bench(mock.url)
    with pytest.raises(ServerError, match="is the server up"):
        bench("127.0.0.1:1")


def test_start_up_loads_no_torch() -> None:
    check = "import sys, twofour.bench.table, twofour.bench.vllm_json; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
    light = "import sys, twofour.bench.run_command; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", light], check=False).returncode == 0
