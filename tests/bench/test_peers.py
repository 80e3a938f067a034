"""Servers under the same load in turns: what is given, whose turn it is, ratios by hand, and the verb itself."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from processes import soon

from twofour.bench import peers, servers
from twofour.bench.peers import Asked, Peer
from twofour.bench.run import Load
from twofour.bench.servers import Server
from twofour.bench.workload import Lengths
from twofour.prune.errors import InputError
from twofour.prune.progress import silent
from twofour.serve.cli import main

SCRIPT = Path(__file__).with_name("scripted_server.py")
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
    assert main([*words, "--prompt-tokens", "8", "--output-tokens", "6", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    found = json.loads(out.read_text())
    assert [peer["model"] for peer in found["peers"]] == ["slow", "quick"]
    assert [(cell["concurrency"], cell["peer"]) for cell in found["cells"]] == [
        *((1, "slow"), (1, "quick"), (3, "slow"), (3, "quick")),
    ]
    for cell in found["cells"]:
        assert cell["failed"] == 0 and len(cell["output_tokens_per_s"]) == 2
        assert cell["ttft"]["n"] == 2 * 8 and cell["itl_tok"]["n"] == 2 * 8 * 5
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


def frozen(servers: tuple[Server, Server]) -> tuple[bool, bool]:
    """Which of two servers stands still, as soon as one does: a signal takes its time on a busy machine."""
    soon(lambda: any(stands_still(each) for each in servers))
    return stands_still(servers[0]), stands_still(servers[1])


def test_who_is_not_measured_is_frozen(running: tuple[Server, Server], monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[bool, bool]] = []
    pids = [f"{name}={server.pid}" for name, server in zip(("slow", "quick"), running, strict=True)]
    servers_ = peers.peers([f"slow={running[0].url()}", f"quick={running[1].url()}"], (), pids)
    monkeypatch.setattr(peers, "measure", lambda load: seen.append(frozen(running)))
    peers.compare(servers_, Asked([1], Lengths(8), Lengths(6), rounds=1), silent)
    assert seen == [(False, True), (True, False)]
    assert all("T" not in states(server) for server in running)


@pytest.mark.parametrize("pid", ["quick=x", "quick", f"quick={2**22 + 1}"])
def test_what_cannot_be_frozen_is_refused(pid: str) -> None:
    with pytest.raises(InputError, match="does not name a process that leads its group"):
        peers.peers(["quick=http://a:1#m"], (), [pid])


def test_all_get_the_same_schedule_and_each_begins_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Load] = []
    monkeypatch.setattr(peers, "measure", lambda load: seen.append(load))
    asked = Asked([1, 8], Lengths(8), Lengths(6), rounds=2, seed=5)
    found = peers.compare(PAIR, asked, silent)
    assert [(load.seed, load.concurrency, load.url[-1]) for load in seen] == [
        *((5, 1, "a"), (5, 1, "b"), (5, 8, "a"), (5, 8, "b")),
        *((7, 1, "b"), (7, 1, "a"), (7, 8, "b"), (7, 8, "a")),
    ]
    assert [load.requests for load in seen[:4]] == [8, 8, 16, 16]
    assert {cell: len(runs) for cell, runs in found.items()} == dict.fromkeys(
        [(1, "a"), (1, "b"), (8, "a"), (8, "b")], 2
    )


@pytest.mark.parametrize("given", [["http://a:1"], ["a=b"], ["=http://a:1"], ["a=http://a:1#m", "a=http://b:1#m"]])
def test_what_is_no_server_is_refused(given: list[str]) -> None:
    with pytest.raises(InputError, match="give NAME=URL or NAME=URL#MODEL, each name once"):
        peers.peers(given)


def test_who_is_plain_is_named() -> None:
    given = ["a=http://a:1#m", "b=http://b:1#n"]
    assert peers.peers(given, ["b"]) == [Peer("a", "http://a:1", "m"), Peer("b", "http://b:1", "n", plain=True)]
    assert [Asked([1], Lengths(8), Lengths(6)).load(peer, 1, 0).plain for peer in peers.peers(given, ["b"])] == [0, 1]
    with pytest.raises(InputError, match="c is no server here; give names of a, b to --plain and --pid"):
        peers.peers(given, ["c"])


@pytest.mark.parametrize("words", [["--rounds", "0"], ["--concurrency", "1", "0"]])
def test_a_load_of_nothing_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "peers", "a=http://127.0.0.1:1#m", *words]) == 1
    assert "both are at least 1" in capsys.readouterr().err


def test_a_row_says_what_failed_and_what_is_unknown() -> None:
    nothing = {"n": 0, "p50": None, "p95": None}
    cell = {"concurrency": 8, "peer": "other", "failed": 3, "invalid": ["client lag"], "output_tokens_per_s": []}
    cell |= {"of_the_first": None, "ttft": {"n": 70, "p50": 0.0123, "p95": 0.5}, "itl_tok": nothing, "e2e": nothing}
    load = {"prompt_tokens": "8", "output_tokens": "6", "rounds": 1, "seed": 0}
    rows = peers.table({"load": load, "cells": [cell]}).splitlines()
    assert rows[2].split() == ["8", "at", "a", "time,", "other", "-", "-", "12.3", "500.0", "-", "-", "3", "FAILED"]
    assert rows[3] == "    not valid: client lag"
