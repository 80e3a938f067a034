"""Fault 32: mixed load with clients that leave at random, for TWOFOUR_SOAK_S seconds (60 unless set; a real one: 600).

Memory, files and threads must end where they were after the first third, every request in its own way, and the golden
text must stay what it was. Memory must not climb either: the slope over the last two thirds is printed, and so are the
seed and how long the golden text took in their first and their second half.
"""

import os
import random
import statistics
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

Server = Any
SOAK_S = float(os.environ.get("TWOFOUR_SOAK_S", "60"))
SEED = int(os.environ.get("TWOFOUR_SOAK_SEED", "0"))
CLIENTS = 12
# A pool starts a thread when one is first needed; all pools of a server together have no more than these.
POOLED = 5 + min(32, (os.cpu_count() or 1) + 4)
pytestmark = pytest.mark.slow


class Client(threading.Thread):
    """Asks one thing after the other, as its own random numbers say."""

    def __init__(self, server: Server, number: int, over: threading.Event) -> None:
        super().__init__()
        self.server, self.chance, self.over = server, random.Random(SEED * 1000 + number), over
        self.ended: dict[str, int] = {}
        self.fault: Exception | None = None

    def run(self) -> None:
        try:
            while not self.over.is_set():
                how = self.ask()
                self.ended[how] = self.ended.get(how, 0) + 1
        except Exception as error:
            self.fault = error

    def ask(self) -> str:
        chance = self.chance
        body: dict[str, Any] = {
            "model": "m",
            "prompt": chance.choice(
                ["Once upon a time", "a" * chance.randint(1, 900), [chance.randrange(3, 250)] * 40]
            ),
            "max_tokens": chance.randint(1, 120),
            "temperature": chance.choice([0, 0.7, 1.5]),
            "n": chance.choice([1, 1, 1, 3]),
            "ignore_eos": True,
            "stream": chance.random() < 0.6,
        }
        if chance.random() < 0.3:
            body |= {"logprobs": 5, "seed": 7, "presence_penalty": 0.5, "stop": ["zzzz"]}
        if chance.random() < 0.05:
            body["max_tokens"] = -1
        leaves_at = chance.randint(0, 40) if chance.random() < 0.3 else None
        with self.server.client() as client:
            return self.answer(client, body, leaves_at)

    def answer(self, client: httpx.Client, body: dict[str, Any], leaves_at: int | None) -> str:
        if leaves_at is not None and not body["stream"]:
            with suppress(httpx.TimeoutException):
                client.post("/v1/completions", json=body, timeout=leaves_at / 100 + 0.01)
            return "left"
        with client.stream("POST", "/v1/completions", json=body) as answer:
            last = ""
            for number, line in enumerate(line for line in answer.iter_lines() if line):
                if number == leaves_at:
                    return "left"
                last = line
        assert answer.status_code in (200, 400), last
        if answer.status_code == 200 and body["stream"]:
            assert last == "data: [DONE]", last
        return str(answer.status_code)


def usage(server: Server) -> dict[str, int]:
    pids = (server.process.pid, server.engine_pid())
    return {
        "fds": server.settled_fds(),
        "threads": sum(len(os.listdir(f"/proc/{pid}/task")) for pid in pids),
        "server bytes": server.rss_bytes(),
        "engine bytes": rss_bytes(pids[1]),
    }


@dataclass
class Watch:
    """What was seen while the load was on."""

    at_s: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # that the golden text took
    held: list[int] = field(default_factory=list)  # bytes of both processes

    def look(self, server: Server) -> None:
        began = time.monotonic()
        assert server.text() == server.golden
        self.at_s.append(began)
        self.seconds.append(time.monotonic() - began)
        self.held.append(server.rss_bytes() + rss_bytes(server.engine_pid()))

    def climb(self) -> float:
        """Bytes a second, by least squares."""
        return statistics.linear_regression(self.at_s, self.held).slope

    def p95s(self) -> list[float]:
        middle = len(self.seconds) // 2
        return [sorted(half)[int(0.95 * len(half))] for half in (self.seconds[:middle], self.seconds[middle:])]


def rss_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def load(server: Server, seconds: float, watch: Watch) -> dict[str, int]:
    """Put the load on for so long; return how many requests ended how."""
    over = threading.Event()
    clients = [Client(server, number, over) for number in range(CLIENTS)]
    for client in clients:
        client.start()
    end_at = time.monotonic() + seconds
    while time.monotonic() < end_at and not any(client.fault for client in clients):
        watch.look(server)
        time.sleep(0.2)
    over.set()
    for client in clients:
        client.join()
        if client.fault:
            raise client.fault
    kinds = {kind for client in clients for kind in client.ended}
    return {kind: sum(client.ended.get(kind, 0) for client in clients) for kind in kinds}


def test_fault_32_soak(start: Any, capsys: pytest.CaptureFixture[str]) -> None:
    server = start()
    pid = server.engine_pid()
    watch = Watch()
    load(server, SOAK_S / 3, Watch())
    server.whole()
    before = usage(server)
    ended = load(server, SOAK_S * 2 / 3, watch)
    server.whole()
    after = usage(server)
    with capsys.disabled():
        print(f"\nseed {SEED}: {ended} in {SOAK_S * 2 / 3:g} s; before {before}, after {after}")
        first, second = watch.p95s()
        print(
            f"memory: {watch.climb() * 60 / 1e6:+.2f} MB a minute; p95 of the golden text {first:.2f} s, {second:.2f} s"
        )
    assert {"200", "400", "left"} <= set(ended)
    assert after["fds"] == before["fds"]
    assert after["threads"] < before["threads"] + POOLED
    for kind in ("server bytes", "engine bytes"):
        assert after[kind] <= 1.1 * before[kind]
    assert watch.climb() * SOAK_S * 2 / 3 <= 0.1 * max(watch.held)
    assert server.engine_pid() == pid
    assert server.metric("twofour:engine_restarts_total") == 0
