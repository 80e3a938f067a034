import argparse
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from twofour.bench.commands import INVALID
from twofour.bench.commands import run as run_command
from twofour.bench.load import client, decode, gates, run, watch
from twofour.bench.load.endpoint import Endpoint, Memory, State
from twofour.bench.proof.mock import Script, serving
from twofour.bench.traffic import traffic
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
    assert status == (0 if shown["valid"] else INVALID)
    assert (shown["kind"], shown["schema_version"], shown["cut_off"]) == ("twofour.bench.run", 2, False)
    assert shown["versions"]["uvloop"] == version("uvloop") and shown["command"][0] == "twofour"
    assert shown["hardware"]["cpus"] == len(os.sched_getaffinity(0))
    assert [record["planned_output_tokens"] for record in records] == [6] * 12
    assert [record["planned_prompt_tokens"] for record in records] == [8] * 12
    assert shown["load"]["model"] == "mock" and shown["load"]["seed"] == 5
    assert shown["summary"]["completed"] == len(records) == 12
    assert shown["summary"]["ttft"]["p50"] > 0 and shown["summary"]["ttft"]["p99"] is None
    assert all(0 <= record["sent_at"] <= record["chunks"][0][0] <= record["done_at"] for record in records)
    assert [sum(tokens for _, tokens in record["chunks"]) for record in records] == [6] * 12


def test_forms_beside_the_document(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page, rows, lines, kept = (tmp_path / name for name in ("run.html", "run.csv", "run.jsonl", "run.json"))
    with serving(Script()) as mock:
        bench(mock.url, "--html", str(page), "--csv", str(rows), "--jsonl", str(lines), "--out", str(kept))
    assert "12 completed" in capsys.readouterr().out
    records = json.loads(kept.read_text())["records"]
    assert [json.loads(line)["sent_at"] for line in lines.read_text().splitlines()] == [r["sent_at"] for r in records]
    assert len(rows.read_text().splitlines()) == 13
    assert f"mock at {mock.url}" in page.read_text()


def test_a_signal_while_the_document_is_written_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def killed(*_: object) -> Iterator[str]:
        yield "{"
        os.kill(os.getpid(), signal.SIGTERM)
        yield "}"

    monkeypatch.setattr(run, "pieces", killed)
    before = signal.signal(signal.SIGTERM, lambda *_: None)  # where the verb does not listen, nothing hears of it
    try:
        with serving(Script()) as mock, pytest.raises(SystemExit) as ended:
            bench(mock.url, "--out", str(tmp_path / "run.json"))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert ended.value.code == 143 and not list(tmp_path.iterdir())
    assert "12 completed" in capsys.readouterr().out


def test_warm_up_and_run_share_no_prompt() -> None:
    with serving(Script()) as mock:
        bench(mock.url)
    prompts = [served.body["prompt"] for served in mock.served]
    assert len(prompts) == 12 + 5  # the warm-up: one alone, then as many as at once
    assert len({" ".join(prompt.split()[:4]) for prompt in prompts}) == len({*prompts}) == len(prompts)


def test_the_same_seed_and_nonce_send_the_same_again(capsys: pytest.CaptureFixture[str]) -> None:
    def sent(*words: str) -> list[dict[str, Any]]:
        with serving(Script()) as mock:
            bench(mock.url, "--concurrency", "1", "--prompt-tokens", "9~0.4", *words)
        return [served.body for served in mock.served]

    first, drawn = sent("--seed", "3", "--nonce", "mine"), sent("--seed", "3")
    assert sent("--seed", "3", "--nonce", "mine") == first
    assert "seed 3, nonce mine" in capsys.readouterr().out
    for prompt, other in (
        (one["prompt"].split(), two["prompt"].split()) for one, two in zip(first, drawn, strict=True)
    ):
        assert prompt[:4] != other[:4] and prompt[4:] == other[4:]


def test_a_person_sees_numbers_gates_and_a_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Script(stop_after=2, refuse_every=4)) as mock:
        status = bench(mock.url, "--rate", "500")
    out, err = capsys.readouterr()
    assert status == INVALID
    assert "500 requests/s, Poisson" in out
    assert "3 x status 503: the mock refuses" in out or "4 x status 503: the mock refuses" in out
    assert "n < 299" in out
    assert "FAILED        output_length: 100.0%, at most 0.5%" in out
    assert out.endswith("INVALID: do not quote these numbers\n")
    assert "invalid run: output_length" in err
    assert "load 12/12" in err


def shown(capsys: pytest.CaptureFixture[str], script: Script) -> str:
    with serving(script) as mock:
        bench(mock.url, "--concurrency", "2", "--requests", "6")
    return capsys.readouterr().out


def test_a_person_sees_what_the_network_did(capsys: pytest.CaptureFixture[str]) -> None:
    well = shown(capsys, Script(token_s=0.005))
    assert "prompts of 8.0 and answers of 6.0 tokens each by the server's count" in well
    assert re.search(r"\d measured from \d+\.\d to \d+\.\d s, without ramp and drain", well)
    assert "sent again" not in well and "100.0% of the reads" not in well
    assert "100.0% of the reads brought several chunks" in shown(capsys, Script(chunks_per_write=6))
    assert re.search(r"\d requests were sent again, as the server had closed", shown(capsys, Script(drop_reused=True)))
    assert "prompts of unknown and answers of unknown tokens" in shown(capsys, Script(usage="never"))


def test_the_servers_own_counters_of_its_prefix_cache_are_a_gate(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    counters = iter([State(Memory(), {}, 10, 100), State(Memory(), {}, 13, 200)])
    monkeypatch.setattr(Endpoint, "scrape", lambda _: next(counters))
    with serving(Script()) as mock:
        assert bench(mock.url, "--json") == INVALID
    gates = {gate["name"]: gate for gate in json.loads(capsys.readouterr().out)["gates"]}
    assert gates["prefix_cache"]["value"] == 0.03 and not gates["prefix_cache"]["passed"]


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


def test_a_server_that_knows_only_openais_api_is_asked_plainly(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Script(usage="last")) as mock:
        bench(mock.url, "--plain", "--json")
    assert json.loads(capsys.readouterr().out)["load"]["plain"] is True
    assert len(mock.served) == 12 + 5
    for served in mock.served:
        assert not {"ignore_eos", "min_tokens"} & set(served.body)
        assert served.body["stream_options"] == {"include_usage": True}


def test_building_and_decoding_are_not_part_of_what_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    happened = []

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any, **named: Any) -> Any:
            happened.append(name)
            return function(*given, **named)

        return call

    class Pressure(gates.Pressure):
        share = noted("share", gates.Pressure.share)

    monkeypatch.setattr(client, "jobs", noted("build", client.jobs))
    monkeypatch.setattr(Endpoint, "scrape", noted("scrape", Endpoint.scrape))
    monkeypatch.setattr(gates, "Pressure", noted("pressure", Pressure))
    monkeypatch.setattr(run, "perf_counter", noted("clock", run.perf_counter))
    monkeypatch.setattr(client.Session, "send", noted("send", client.Session.send))
    monkeypatch.setattr(decode, "record", noted("decode", decode.record))
    with serving(Script()) as mock:
        bench(mock.url, "--concurrency", "1", "--requests", "1")
    warm_up = ["build", "send", "decode", "decode"]
    load = ["build", "scrape", "pressure", "clock", "send", "share", "scrape", "decode"]
    assert happened == [*warm_up, *load]


def test_wrong_calls_are_refused_before_any_load(tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.touch()
    with serving(Script()) as mock:
        for arguments, error in (
            (["--out", str(taken)], OutputError),
            (["--out", str(tmp_path / "missing" / "run.json")], OutputError),
            (["--html", str(taken)], OutputError),
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
    check = "import sys, twofour.bench.load.table, twofour.bench.load.vllm_json; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0
    light = "import sys, twofour.bench.commands.run; sys.exit('numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", light], check=False).returncode == 0


def test_a_schedule_that_was_written_is_replayed_exactly(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    def sent(*words: str) -> tuple[list[dict[str, Any]], dict[str, Any]]:
        with serving(Script()) as mock:
            replay(mock.url, "--json", "--nonce", "mine", *words)
        document = json.loads(capsys.readouterr().out)
        return [served.body for served in mock.served], document

    plan = tmp_path / "schedule.jsonl"
    asked = ["--requests", "9", "--turns", "3", "--concurrency", "1", "--prompt-tokens", "8", "--shared-prefix", "0.5"]
    bodies, document = sent(*asked, "--schedule-out", str(plan))
    again, replayed = sent("--schedule", str(plan))
    assert again == bodies
    assert document["schedule_sha256"] == replayed["schedule_sha256"] == sha256(plan.read_bytes()).hexdigest()
    assert document["load"].items() >= {"requests": 9, "turns": "3", "shared_prefix": 0.5, "nonce": "mine"}.items()


def replay(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    run_command.add_arguments(parser)
    return run_command.run(parser.parse_args(arguments))


def test_sessions_through_a_socket(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    with serving(Script(token_s=0.002)) as mock:
        bench(mock.url, "--rate", "300", "--turns", "3", "--think", "0.01", "--out", str(out), "--warmup", "0")
    records = {record["index"]: record for record in json.loads(out.read_text())["records"]}
    assert len(mock.served) == len(records) == 12
    for first in range(0, 12, 3):
        for before, after in ((first, first + 1), (first + 1, first + 2)):
            assert records[after]["scheduled_at"] == pytest.approx(records[before]["done_at"] + 0.01)
    assert sorted(len(served.body["prompt"].split()) for served in mock.served) == sorted([8, 22, 36] * 4)
    assert "300 sessions/s, Poisson" in capsys.readouterr().out


@pytest.mark.parametrize(("warm_up", "count"), [("0", 0), ("1", 1), ("7", 7)])
def test_as_much_warm_up_as_is_asked_for(warm_up: str, count: int) -> None:
    with serving(Script()) as mock:
        bench(mock.url, "--warmup", warm_up)
    assert len(mock.served) == 12 + count


def test_requests_that_were_held_back_are_counted(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    with serving(Script(token_s=0.005)) as mock:
        assert bench(mock.url, "--rate", "2000", "--max-in-flight", "1", "--out", str(out)) == INVALID
    document = json.loads(out.read_text())
    held = [record for record in document["records"] if record["held"]]
    assert "held_back" in failed_gates(document) and len(held) >= 6
    assert all(record["sent_at"] - record["scheduled_at"] > 0 for record in held)
    assert "at most 1 in flight" in capsys.readouterr().out


def test_a_load_that_is_stopped_says_so(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(watch.Watch, "look", lambda _, seen, now: seen.ended >= 3)
    out = tmp_path / "run.json"
    with serving(Script(token_s=0.01)) as mock:
        status = bench(mock.url, "--rate", "50", "--requests", "200", "--stop-over-saturated", "--out", str(out))
    document = json.loads(out.read_text())
    assert status == INVALID and document["over_saturated"] and not document["cut_off"] and not document["valid"]
    assert 3 <= len(document["records"]) < 200
    assert "STOPPED       over-saturated" in capsys.readouterr().out


def test_time_ends_a_load(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(traffic, "_MOST_REQUESTS", 500)
    out, few = tmp_path / "run.json", tmp_path / "few.json"
    with serving(Script(token_s=0.005)) as mock:
        replay(mock.url, "--duration", "0.4", "--prompt-tokens", "8", "--output-tokens", "6", "--out", str(out))
        replay(mock.url, "--duration", "60", "--requests", "5", "--output-tokens", "6", "--out", str(few))
    document = json.loads(out.read_text())
    assert 0 < len(document["records"]) < document["load"]["requests"] == 500
    assert len(json.loads(few.read_text())["records"]) == 5
    assert capsys.readouterr().out.count("the requests were sent before --duration was over") == 1


def test_what_is_promised_is_judged(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--slo", "ttft=60s,e2e_p99=60s,itl=1ms", "--requests", "24"]
    with serving(Script(token_s=0.005)) as mock:
        bench(mock.url, *words)
        table = capsys.readouterr().out
        bench(mock.url, *words, "--json")
    found = json.loads(capsys.readouterr().out)["slo"]
    assert [term["kept"] for term in found["terms"]] == [True, None, False] and found["attained"] is False
    assert (found["slo"], found["good"]) == ("ttft=60000ms,e2e_p99=60000ms,itl=1ms", 0)
    assert found["goodput_per_s"] == 0 and 0 < found["requests"] <= 24
    assert re.search(r"^SLO MISSED\n  ttft +\d+\.\d\d ms, at most 60000.00 ms\n  e2e_p99 +- ms, at most", table, re.M)
    assert re.search(r"^  itl .* at most 1.00 ms  MISSED\ngoodput: 0.00 requests/s, 0.0 % of \d+ requests", table, re.M)


def test_an_slo_that_cannot_be_read_is_refused_before_any_load() -> None:
    with serving(Script()) as mock, pytest.raises(InputError, match="no term of an SLO"):
        bench(mock.url, "--slo", "fast")
    assert mock.served == []
