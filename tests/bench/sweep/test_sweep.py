"""Running servers under many loads in turns: what is given, whose turn it is, ratios by hand, and the verb itself."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from operator import truediv
from pathlib import Path
from statistics import geometric_mean
from typing import NoReturn

import pytest
from bench_findings import CLOSED, run
from processes import soon

from twofour.bench.commands import INVALID
from twofour.bench.load.gates import Gate
from twofour.bench.load.run import Run
from twofour.bench.load.service import Service
from twofour.bench.load.slo import parse
from twofour.bench.load.workload import Lengths, Schedule
from twofour.bench.proof.mock import Script, serving
from twofour.bench.sweep import ladder, table, visit
from twofour.bench.sweep.document import document
from twofour.bench.sweep.load import Load, Pace
from twofour.bench.targets import servers
from twofour.bench.targets.running import Running, read_running
from twofour.bench.targets.servers import Server
from twofour.bench.traffic.traffic import Traffic
from twofour.cli import main
from twofour.prune.errors import InputError, ServerError
from twofour.prune.progress import silent

SCRIPT = Path(__file__).parents[2] / "helpers" / "stand_in_server.py"


def raising(error: BaseException) -> NoReturn:
    raise error


def ended(words: list[str]) -> int:
    """The exit status of the command."""
    try:
        return main(words)
    except SystemExit as end:
        return int(str(end.code))


PAIR = [Running("a", Service("http://a", "m")), Running("b", Service("http://b", "m"))]
SMALL = Load(Traffic(prompt_tokens=Lengths(8), output_tokens=Lengths(6), seed=5))


@pytest.fixture
def running(tmp_path: Path) -> Iterator[tuple[Server, Server]]:
    """A server that takes 8 ms for a token, and one that takes 2."""
    commands = [
        [sys.executable, str(SCRIPT), name, "--token-s", token_s, "--engine-pid", str(tmp_path / f"{name}.pid")]
        for name, token_s in (("slow", "0.008"), ("quick", "0.002"))
    ]
    with (
        servers.started(commands[0], tmp_path / "slow.log") as slow,
        servers.started(commands[1], tmp_path / "quick.log") as quick,
    ):
        slow.url(), quick.url()
        yield slow, quick


def test_the_verb_compares_what_runs(
    running: tuple[Server, Server], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slow, quick = (server.url() for server in running)
    out = tmp_path / "sweep.json"
    words = ["bench", "sweep", f"slow={slow}", f"quick={quick}#quick", "--concurrency", "3", "1", "--rounds", "2"]
    status = main([*words, "--prompt-tokens", "8", "--output-tokens", "6", "--slo", "tpot_p50=5ms", "--out", str(out)])
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert (found["kind"], found["schema_version"]) == ("twofour.bench.sweep", 1)
    assert found["complete"] and found["valid"] == (not any(cell["invalid"] for cell in found["cells"]))
    assert status == (0 if found["valid"] else INVALID)
    assert printed.endswith("\nVALID\n" if found["valid"] else "\nINVALID: do not quote these numbers\n")
    assert [server["model"] for server in found["servers"]] == ["slow", "quick"]
    assert [(cell["concurrency"], cell["server"]) for cell in found["cells"]] == [
        *((1, "slow"), (1, "quick"), (3, "slow"), (3, "quick")),
    ]
    for cell, first in zip(found["cells"], [found["cells"][place] for place in (0, 0, 2, 2)], strict=True):
        assert cell["failed"] == 0 and cell["rounds"] == 2 and [run["round"] for run in cell["runs"]] == [0, 1]
        counted = cell["ttft"]["n"]  # not those of ramp and drain
        assert counted == sum(run["summary"]["measured"] for run in cell["runs"]) <= 2 * 12
        assert cell["itl_tok"]["n"] == counted * 5 and (counted == 2 * 12 or cell["concurrency"] > 1)
        rates, base = cell["output_tokens_per_s"], first["output_tokens_per_s"]
        assert cell["of_the_first"]["point"] == pytest.approx(geometric_mean(map(truediv, rates, base)))
        assert cell["attained"] == [run["slo"]["attained"] for run in cell["runs"]]
        assert f"{cell['concurrency']} at a time, {cell['server']}" in printed
    kept = [(cell["server"], cell["concurrency"]) for cell in found["cells"] if all(cell["attained"])]
    for best in found["highest"]:
        assert best["concurrency"] == max((n for name, n in kept if name == best["server"]), default=None)
    assert found["command"][0] == "twofour" and "cpu" in found["hardware"]
    assert main(["bench", "report", str(out)]) == 0 and capsys.readouterr().out == printed
    assert main([*words, "--out", str(out)]) == 1 and "exists" in capsys.readouterr().err


def states(server: Server) -> set[str]:
    """Of all processes of a server, from Linux."""
    stats = [path.read_text().rpartition(")")[2].split() for path in Path("/proc").glob("[0-9]*/stat")]
    return {state for state, _, group, *_ in stats if int(group) == server.pid}


def stands_still(server: Server) -> bool:
    return states(server) == {"T"}


def standing_still(servers: tuple[Server, Server]) -> tuple[bool, bool]:
    """Which of two servers stands still, as soon as one does: a signal takes its time on a busy machine."""
    soon(lambda: any(stands_still(each) for each in servers))
    return stands_still(servers[0]), stands_still(servers[1])


def test_who_is_not_measured_is_frozen(running: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool]] = []
    pids = [f"{name}={server.pid}" for name, server in zip(("slow", "quick"), running, strict=True)]
    both = read_running([f"slow={running[0].url()}#slow", f"quick={running[1].url()}#quick"], Service, pids=pids)

    def looked(*_: object, **__: object) -> Run:
        seen.append(standing_still(running))
        return runs_of("a", 1, 0)

    monkeypatch.setattr(visit, "measure", looked)
    ladder.climb(both, SMALL, [Pace(1)], 1, silent)
    assert seen == [(False, True), (True, False)]
    assert all("T" not in states(server) for server in running)


def test_all_get_the_same_schedule_and_each_begins_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Service, Schedule]] = []

    def measured(service: Service, schedule: Schedule, progress: object) -> Run:
        seen.append((service, schedule))
        return runs_of("a", 1, 0)

    monkeypatch.setattr(visit, "measure", measured)
    plain = replace(PAIR[1], service=replace(PAIR[1].service, plain=True))
    found = ladder.climb([PAIR[0], plain], SMALL, [Pace(1), Pace(8)], 2, silent)
    assert all(service.plain == (service.url[-1] == "b") for service, _ in seen)
    assert [(load.made_of["seed"], load.concurrency, service.url[-1]) for service, load in seen] == [
        *((5, 1, "a"), (5, 1, "b"), (5, 8, "a"), (5, 8, "b")),
        *((6, 1, "b"), (6, 1, "a"), (6, 8, "b"), (6, 8, "a")),
    ]
    assert [len(load.requests) for _, load in seen[:4]] == [8, 8, 16, 16]
    assert [(each.round, each.pace.concurrency, each.server) for each in found.visits] == [
        (load.made_of["seed"] - 5, load.concurrency, service.url[-1]) for service, load in seen
    ]


def test_how_many_requests_a_run_has() -> None:
    promised = replace(SMALL, slo=parse("ttft_p95=1s"))
    sizes = [len(load.schedule(pace, 0).requests) for load in (SMALL, promised) for pace in (Pace(3), Pace(rate=2.0))]
    assert sizes == [8, 128, 2 * 59, 4 * 59]
    assert len(replace(promised, requests=70).schedule(Pace(rate=2.0), 0).requests) == 70
    with pytest.raises(InputError, match="give --requests at least 59"):
        replace(promised, requests=58)


def test_another_rate_is_the_same_load_faster() -> None:
    slow, quick = (SMALL.schedule(Pace(rate=rate), 1).requests for rate in (2.0, 5.0))
    assert [each.at_s for each in quick] == pytest.approx([each.at_s * 2 / 5 for each in slow])
    assert [(a.prompt, a.output_tokens) for a in quick] == [(b.prompt, b.output_tokens) for b in slow]


def test_over_its_capacity_no_higher_rate_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    behind = Gate("rate_shortfall", 0.5, 0.05, "share", "lower --rate")

    def measured(service: Service, schedule: Schedule, progress: object) -> Run:
        over = service.url[-1] == "a" and schedule.made_of["rate"] >= 2
        return run(replace(CLOSED, concurrency=None, rate=1.0), 0, 0.01, behind if over else None)

    monkeypatch.setattr(visit, "measure", measured)
    paces = [Pace(rate=rate) for rate in (1.0, 2.0, 3.0)]
    found = ladder.climb(PAIR, SMALL, paces, 2, silent)
    seen = sorted((each.server, each.pace.rate) for each in found.visits)
    assert seen == [
        (name, rate) for name, most in (("a", 2), ("b", 3)) for rate in range(1, most + 1) for _ in range(2)
    ]
    told = document(found, PAIR, SMALL, 2)
    assert told["valid"]  # to be over capacity is a finding
    assert [(cell["server"], cell["rate"]) for cell in told["cells"] if cell["over_capacity"]] == [("a", 2.0)]
    assert table.table(told).count("over capacity: latencies are as long as the run; no higher rate was asked") == 1


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--rounds", "0"], "both are at least 1"),
        (["--requests", "0"], "both are at least 1"),
        (["--concurrency", "1", "0"], "--concurrency is at least 1"),
        (["--within", "2"], "0.02 is 2 %"),
        (["--slo", "e2e"], "no term of an SLO"),
    ],
)
def test_a_sweep_of_nothing_is_refused(words: list[str], why: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "sweep", "a=http://127.0.0.1:1#m", *words]) == 1
    assert why in capsys.readouterr().err


def test_a_row_says_what_failed_and_what_is_unknown() -> None:
    nothing = {"n": 0, "p50": None, "p95": None}
    cell = {"concurrency": 8, "rate": None, "server": "other", "failed": 3, "invalid": ["client lag"]}
    cell |= {"of_the_first": None, "ttft": {"n": 70, "p50": 0.0123, "p95": 0.5}, "itl_tok": nothing, "e2e": nothing}
    cell |= {"rounds": 1, "output_tokens_per_s": [], "over_capacity": False, "goodput_per_s": None, "attained": None}
    load = {"prompt_tokens": "8", "output_tokens": "6", "rounds": 1, "seed": 0, "slo": None}
    told = {"load": load, "cells": [cell], "highest": None, "limits": None, "complete": False, "valid": False}
    rows = table.table(told).splitlines()
    assert rows[2].split() == ["8", "at", "a", "time,", "other", "-", "-", "12.3", "500.0", "-", "-", "3", "FAILED"]
    assert rows[3:] == [
        "    not valid: client lag",
        "CUT OFF: rounds of each, 1",
        "INVALID: do not quote these numbers",
    ]


def runs_of(peer: str, concurrency: int, round_: int, failed: Gate | None = None) -> Run:
    asked = replace(CLOSED, concurrency=concurrency)
    return run(asked, round_, 0.01 if peer == "a" else 0.02, failed)


def test_a_failed_gate_of_any_run_makes_the_whole_invalid(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    late, seen = Gate("errors", 0.5, 0.01, "share", "look at the errors"), list[Service]()

    def measured(service: Service, schedule: Schedule, progress: object) -> Run:
        seen.append(service)
        return runs_of(service.url[-1], 1, 0, late if len(seen) == 4 else None)

    monkeypatch.setattr(visit, "measure", measured)
    words = ["bench", "sweep", "a=http://a#m", "b=http://b#m", "--concurrency", "1", "--rounds"]
    assert main([*words, "1"]) == 0 and "VALID" in capsys.readouterr().out
    assert main([*words, "1", "--json"]) == INVALID
    found = json.loads(capsys.readouterr().out)
    assert (found["valid"], [cell["invalid"] for cell in found["cells"]]) == (False, [[], ["errors"]])


@pytest.mark.parametrize(
    ("ending", "status", "said"),
    [
        (partial(os.kill, os.getpid(), signal.SIGINT), 130, ""),
        (partial(os.kill, os.getpid(), signal.SIGTERM), 143, ""),
        (partial(raising, ServerError("b is gone")), 1, "error: b is gone"),
    ],
)
def test_what_was_measured_is_kept_when_it_is_cut_off(
    ending: Callable[[], None],
    status: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def measured(service: Service, schedule: Schedule, progress: object) -> Run:
        round_ = schedule.made_of["seed"]
        if round_ == 1 and service.url[-1] == "a":  # the second round begins with b
            ending()
        return runs_of(service.url[-1], 1, round_)

    monkeypatch.setattr(visit, "measure", measured)
    out = tmp_path / "sweep.json"
    words = ["bench", "sweep", "a=http://a#m", "b=http://b#m", "--concurrency", "1", "--out", str(out)]
    assert ended(words) == status
    found, shown = json.loads(out.read_text()), capsys.readouterr()
    assert (found["complete"], found["valid"]) == (False, False)
    assert [(cell["rounds"], cell["of_the_first"]["n"]) for cell in found["cells"]] == [(1, 1), (2, 1)]
    assert found["cells"][1]["of_the_first"]["point"] == pytest.approx(0.5)
    assert "CUT OFF: rounds of each, 1, 2" in shown.out and said in shown.err


def test_a_cut_before_the_first_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(visit, "measure", lambda *_, **__: raising(KeyboardInterrupt()))
    out = tmp_path / "sweep.json"
    assert ended(["bench", "sweep", "a=http://a#m", "--out", str(out)]) == 130
    assert not out.exists()


def test_a_folder_that_is_not_there_is_refused_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "sweep", "a=http://127.0.0.1:1", "--out", str(tmp_path / "none" / "x.json")]) == 1
    assert "is no folder" in capsys.readouterr().err


def test_the_key_goes_to_every_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys, out = tmp_path / "keys", tmp_path / "sweep.json"
    keys.write_text("sk-SECRET-0123\nanother\n")
    with serving(Script()) as mock:
        words = ["bench", "sweep", f"a={mock.url}", "--concurrency", "2", "--rounds", "1", "--api-key-file", str(keys)]
        main([*words, "--prompt-tokens", "8", "--output-tokens", "3", "--out", str(out)])
    assert {served.headers["authorization"] for served in mock.served} == {"Bearer sk-SECRET-0123"}
    said = capsys.readouterr()
    assert "SECRET" not in out.read_text() + said.out + said.err
