"""Servers under the same load in turns: what is given, whose turn it is, ratios by hand, and the verb itself."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar, NoReturn

import pytest
from bench_findings import CLOSED, run
from processes import soon

from twofour.bench.commands import INVALID
from twofour.bench.comparison import peers
from twofour.bench.comparison.peers import Peer, experiment
from twofour.bench.load.gates import Gate
from twofour.bench.load.run import Run
from twofour.bench.load.service import Service
from twofour.bench.load.workload import Lengths, Schedule
from twofour.bench.proof.mock import Script, serving
from twofour.bench.targets import frozen, servers
from twofour.bench.targets.servers import Server
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


PAIR = [Peer("a", "http://a", "m"), Peer("b", "http://b", "m")]


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
    out = tmp_path / "peers.json"
    words = ["bench", "peers", f"slow={slow}", f"quick={quick}#quick", "--concurrency", "1", "3", "--rounds", "2"]
    status = main([*words, "--prompt-tokens", "8", "--output-tokens", "6", "--out", str(out)])
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert (found["kind"], found["schema_version"]) == ("twofour.bench.peers", 1)
    assert found["complete"] and found["valid"] == (not any(cell["invalid"] for cell in found["cells"]))
    assert status == (0 if found["valid"] else INVALID)
    assert printed.endswith("\nVALID\n" if found["valid"] else "\nINVALID: do not quote these numbers\n")
    assert [peer["model"] for peer in found["peers"]] == ["slow", "quick"]
    assert [(cell["concurrency"], cell["peer"]) for cell in found["cells"]] == [
        *((1, "slow"), (1, "quick"), (3, "slow"), (3, "quick")),
    ]
    for cell in found["cells"]:
        assert cell["failed"] == 0 and len(cell["output_tokens_per_s"]) == 2
        counted = cell["ttft"]["n"]
        assert counted == 2 * 8 if cell["concurrency"] == 1 else 0 < counted < 2 * 8  # not those of ramp and drain
        assert cell["itl_tok"]["n"] == counted * 5 and cell["rounds"] == 2
        assert (cell["of_the_first"]["point"] > 1) == (cell["peer"] == "quick")
        assert f"{cell['concurrency']:>3} at a time, {cell['peer']}" in printed
    assert found["command"][0] == "twofour" and "cpu" in found["hardware"]
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
    servers_ = peers.read_peers([f"slow={running[0].url()}", f"quick={running[1].url()}"], (), pids)
    monkeypatch.setattr(peers, "measure", lambda load, key: seen.append(standing_still(running)))
    peers.compare_peers(servers_, [experiment(1, Lengths(8), Lengths(6), rounds=1, seed=0)], silent)
    assert seen == [(False, True), (True, False)]
    assert all("T" not in states(server) for server in running)


@pytest.mark.parametrize("pid", ["quick=x", "quick", "quick=²", f"quick={2**22 + 1}", f"quick={2**70}"])
def test_what_cannot_be_frozen_is_refused(pid: str) -> None:
    with pytest.raises(InputError, match="does not name a process that leads its group"):
        peers.read_peers(["quick=http://a:1#m"], (), [pid])


def test_all_get_the_same_schedule_and_each_begins_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[Service, Schedule]] = []
    monkeypatch.setattr(peers, "measure", lambda *asked: seen.append(asked))
    asked = [experiment(n, Lengths(8), Lengths(6), rounds=2, seed=5) for n in (1, 8)]
    found = peers.compare_peers([PAIR[0], replace(PAIR[1], plain=True)], asked, silent)
    assert all(service.plain == (service.url[-1] == "b") for service, _ in seen)
    assert [(load.made_of["seed"], load.concurrency, service.url[-1]) for service, load in seen] == [
        *((5, 1, "a"), (5, 1, "b"), (5, 8, "a"), (5, 8, "b")),
        *((6, 1, "b"), (6, 1, "a"), (6, 8, "b"), (6, 8, "a")),
    ]
    assert [len(load.requests) for _, load in seen[:4]] == [8, 8, 16, 16]
    assert {cell: len(runs) for cell, runs in found.runs.items()} == dict.fromkeys(
        [(1, "a"), (1, "b"), (8, "a"), (8, "b")], 2
    )


@pytest.mark.parametrize("given", [["http://a:1"], ["a=b"], ["=http://a:1"], ["a=http://a:1#m", "a=http://b:1#m"]])
def test_what_is_no_server_is_refused(given: list[str]) -> None:
    with pytest.raises(InputError, match="give NAME=URL or NAME=URL#MODEL, each name once"):
        peers.read_peers(given)


def test_who_is_plain_is_named() -> None:
    given = ["a=http://a:1#m", "b=http://b:1#n"]
    assert peers.read_peers(given, ["b"]) == [Peer("a", "http://a:1", "m"), Peer("b", "http://b:1", "n", plain=True)]
    with pytest.raises(InputError, match="c is no server here; give names of a, b to --plain and --pid"):
        peers.read_peers(given, ["c"])


@pytest.mark.parametrize("words", [["--rounds", "0"], ["--concurrency", "1", "0"]])
def test_a_load_of_nothing_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "peers", "a=http://127.0.0.1:1#m", *words]) == 1
    assert "both are at least 1" in capsys.readouterr().err


def test_a_row_says_what_failed_and_what_is_unknown() -> None:
    nothing = {"n": 0, "p50": None, "p95": None}
    cell = {"concurrency": 8, "peer": "other", "failed": 3, "invalid": ["client lag"], "output_tokens_per_s": []}
    cell |= {"of_the_first": None, "ttft": {"n": 70, "p50": 0.0123, "p95": 0.5}, "itl_tok": nothing, "e2e": nothing}
    load = {"prompt_tokens": "8", "output_tokens": "6", "rounds": 1, "seed": 0}
    document = {"load": load, "cells": [cell | {"rounds": 1}], "complete": False, "valid": False}
    rows = peers.table(document).splitlines()
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

    def measured(service: Service, schedule: Schedule) -> Run:
        seen.append(service)
        return runs_of(service.url[-1], 1, 0, late if len(seen) == 4 else None)

    monkeypatch.setattr(peers, "measure", measured)
    words = ["bench", "peers", "a=http://a#m", "b=http://b#m", "--concurrency", "1", "--rounds"]
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
    def measured(service: Service, schedule: Schedule) -> Run:
        round_ = schedule.made_of["seed"]
        if round_ == 1 and service.url[-1] == "a":  # the second round begins with b
            ending()
        return runs_of(service.url[-1], 1, round_)

    monkeypatch.setattr(peers, "measure", measured)
    out = tmp_path / "peers.json"
    words = ["bench", "peers", "a=http://a#m", "b=http://b#m", "--concurrency", "1", "--out", str(out)]
    assert ended(words) == status
    found, shown = json.loads(out.read_text()), capsys.readouterr()
    assert (found["complete"], found["valid"]) == (False, False)
    assert [(cell["rounds"], cell["of_the_first"]["n"]) for cell in found["cells"]] == [(1, 1), (2, 1)]
    assert found["cells"][1]["of_the_first"]["point"] == pytest.approx(0.5)
    assert "CUT OFF: rounds of each, 1, 2" in shown.out and said in shown.err


def test_a_cut_before_the_first_run_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "measure", lambda *asked: raising(KeyboardInterrupt()))
    out = tmp_path / "peers.json"
    assert ended(["bench", "peers", "a=http://a#m", "--out", str(out)]) == 130
    assert not out.exists()


def test_a_folder_that_is_not_there_is_refused_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "peers", "a=http://127.0.0.1:1", "--out", str(tmp_path / "none" / "x.json")]) == 1
    assert "is no folder" in capsys.readouterr().err


def test_the_key_goes_to_every_server(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys, out = tmp_path / "keys", tmp_path / "peers.json"
    keys.write_text("sk-SECRET-0123\nanother\n")
    with serving(Script()) as mock:
        words = ["bench", "peers", f"a={mock.url}", "--concurrency", "2", "--rounds", "1", "--api-key-file", str(keys)]
        main([*words, "--prompt-tokens", "8", "--output-tokens", "3", "--out", str(out)])
    assert {served.headers["authorization"] for served in mock.served} == {"Bearer sk-SECRET-0123"}
    said = capsys.readouterr()
    assert "SECRET" not in out.read_text() + said.out + said.err


class Statuses(BaseHTTPRequestHandler):
    """Answers with what is left for a path, the last for good."""

    left: ClassVar[dict[str, list[int]]] = {}

    def do_GET(self) -> None:
        statuses = self.left[self.path]
        self.send_response(statuses.pop(0) if len(statuses) > 1 else statuses[0])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_server_is_well_when_it_is_ready_or_knows_no_such_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "POLL_S", 0.0)
    monkeypatch.setattr(frozen, "signal_group", lambda group, number: None)
    with HTTPServer(("127.0.0.1", 0), Statuses) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            peer = Peer("a", f"http://127.0.0.1:{server.server_port}", "m", group=1)
            for statuses in ({"/ready": [503, 503, 200], "/health": [200]}, {"/ready": [404], "/health": [500, 200]}):
                Statuses.left = statuses
                with peer.awake():
                    assert all(len(left) == 1 for left in statuses.values())
        finally:
            server.shutdown()
            thread.join()
