"""How many requests a second the HTTP layer sustains: the real server, whose engine process has no model.

Everything but the model is what serves: HTTP, validation, tokenizing, admission, the pipe to the engine process and its
messages, detokenizing, server-sent events, metrics, the access log. The engine is `scripted_engine`. A cell is a kind
of answer and a number of clients, which ask for it in a closed loop, on connections that stay open; a round visits
every cell once. Client and server share the machine: where it has two CPUs, the client's own work is part of what
limits the rate. The server's CPU time for a request, which is given beside it, is the firmer number.
"""

import asyncio
import itertools
import json
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

from twofour.bench.load import wire
from twofour.bench.load.client import Client, loop_factory, no_garbage_collection
from twofour.bench.load.decode import Exchange
from twofour.bench.load.pace import Job
from twofour.bench.load.records import Request
from twofour.bench.stats import nearest_rank
from twofour.bench.targets import servers
from twofour.bench.targets.servers import Server
from twofour.bench.turns import whole_rounds
from twofour.prune.errors import ServerError
from twofour.prune.machine.processors import usable_cpus
from twofour.prune.progress import Progress, track

KIND = "twofour.bench.http"
SCHEMA_VERSION = 1
TIMEOUT_S = 60.0
PROMPT = "The quick brown fox jumps over the lazy dog near the bank of the river."
_REMEDY = 'ask "python -m twofour.bench.engine.scripted_server MODEL" the same, and see what it says'
PACKAGES = ("uvicorn", "h11", "starlette", "fastapi", "pydantic")


@dataclass(frozen=True)
class Cell:
    """One kind of load."""

    stream: bool
    tokens: int  # of each answer
    concurrency: int

    @property
    def name(self) -> str:
        return f"{'stream' if self.stream else 'whole'} {self.tokens} tokens, {self.concurrency} at a time"


CELLS = tuple(Cell(stream, tokens, n) for stream, tokens in ((False, 1), (True, 32)) for n in (1, 8, 64))


@dataclass(frozen=True)
class Lap:
    """What one cell did in one round."""

    requests: int
    events: int  # server-sent events, [DONE] left out
    seconds: float
    latencies_s: tuple[float, ...]
    server_cpu_s: float | None  # of the API process; None: this system does not say


def measure(model: str, rounds: int, seconds: float, progress: Progress) -> dict[Cell, list[Lap]]:
    """The laps of each cell; after an interrupt those of the whole rounds until then.

    Raises ServerError where an answer is not what was asked for.
    """
    placement = servers.place(usable_cpus())
    with TemporaryDirectory() as folder, servers.pinned(placement.client_cpus):
        log = Path(folder) / "server.log"
        with servers.started(_command(model), log, placement.server_cpus) as server:
            url = server.url()
            for cell in CELLS:
                _lap(server, url, cell, min(seconds, 1.0))
            turns = {cell: partial(_lap, server, url, cell, seconds) for cell in CELLS}
            return whole_rounds(turns, track(range(rounds), "rounds", progress))


def document(found: dict[Cell, list[Lap]], model: str, seconds: float) -> dict[str, Any]:
    """The result, without what ran it on which machine. A range is that over rounds."""
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "model": model,
        "prompt": PROMPT,
        "rounds": len(next(iter(found.values()))),
        "seconds": seconds,
        "cells": [_cell(cell, laps) for cell, laps in found.items()],
    }


def table(document: dict[str, Any]) -> str:
    head = (
        f"{document['model']}, a scripted engine: {document['rounds']} rounds of {document['seconds']:g} s; "
        "median [range] over rounds"
    )
    columns = f"{'':34}{'requests/s':>24}{'events/s':>28}{'p50 ms':>10}{'p95 ms':>10}{'server CPU ms':>16}"
    return "\n".join([head, columns, *map(_row, document["cells"])])


def _command(model: str) -> list[str]:
    flags = ["--host", "127.0.0.1", "--port", "0", "--served-model-name", "m", "--no-ui"]
    return [sys.executable, "-m", "twofour.bench.engine.scripted_server", model, *flags]


def _lap(server: Server, url: str, cell: Cell, seconds: float) -> Lap:
    to, numbers = wire.target(url), itertools.count()
    message = wire.post(to, "/completions", json.dumps(_body(cell)).encode(), {})
    done: list[Exchange] = []

    async def work(client: Client, end_at: float) -> None:
        while perf_counter() < end_at:
            job = Job(Request(next(numbers), 0.0, "", 0, cell.tokens), message)
            await client.send(job)
            done.append(job.exchange)

    async def load() -> None:
        client, end_at = Client(to, TIMEOUT_S, None), perf_counter() + seconds
        async with asyncio.TaskGroup() as group:
            for _ in range(cell.concurrency):
                group.create_task(work(client, end_at))
        client.close()

    cpu_s, begun = _cpu_s(server.pid), perf_counter()
    with no_garbage_collection(), asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(load())
    took_s, cpu_after_s = perf_counter() - begun, _cpu_s(server.pid)
    used_s = None if cpu_s is None or cpu_after_s is None else cpu_after_s - cpu_s
    events = sum(_events(exchange, cell) for exchange in done)
    latencies_s = tuple((exchange.done_at or 0.0) - (exchange.sent_at or 0.0) for exchange in done)
    return Lap(len(done), events, took_s, latencies_s, used_s)


def _body(cell: Cell) -> dict[str, Any]:
    body: dict[str, Any] = {"model": "m", "prompt": PROMPT, "max_tokens": cell.tokens, "temperature": 0}
    return {**body, "stream": True, "stream_options": {"include_usage": True}} if cell.stream else body


def _events(exchange: Exchange, cell: Cell) -> int:
    """How many an answer had. Raises ServerError unless it is whole and has as many tokens as were asked for."""
    body = b"".join(data for _, data in exchange.arrived())
    if exchange.error or exchange.status != 200:
        raise ServerError(f"an answer failed: {exchange.error or exchange.status}: {body[:200]!r}; {_REMEDY}")
    said = [line.removeprefix(b"data: ") for line in body.split(b"\n\n") if line] if cell.stream else [body, b"[DONE]"]
    tokens = json.loads(said[-2])["usage"]["completion_tokens"]
    if said[-1] != b"[DONE]" or tokens != cell.tokens:
        raise ServerError(f"an answer has {tokens} tokens of {cell.tokens}, or no end; {_REMEDY}")
    return len(said) - 1 if cell.stream else 0


def _cpu_s(pid: int) -> float | None:
    """User and system time of a process, from Linux."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.is_file():
        return None
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _cell(cell: Cell, laps: Sequence[Lap]) -> dict[str, Any]:
    cpu_s = [lap.server_cpu_s / lap.requests for lap in laps if lap.server_cpu_s is not None]
    return {
        "stream": cell.stream,
        "tokens": cell.tokens,
        "concurrency": cell.concurrency,
        "requests": sum(lap.requests for lap in laps),
        "requests_per_s": _spread(lap.requests / lap.seconds for lap in laps),
        "events_per_s": _spread(lap.events / lap.seconds for lap in laps) if cell.stream else None,
        "p50_s": _spread(nearest_rank(sorted(lap.latencies_s), 50) for lap in laps),
        "p95_s": _spread(nearest_rank(sorted(lap.latencies_s), 95) for lap in laps),
        "server_cpu_s_per_request": _spread(cpu_s) if cpu_s else None,
    }


def _spread(values: Iterator[float] | Sequence[float]) -> dict[str, Any]:
    rounds = list(values)
    return {"median": median(rounds), "low": min(rounds), "high": max(rounds), "rounds": rounds}


def _row(cell: dict[str, Any]) -> str:
    name = Cell(cell["stream"], cell["tokens"], cell["concurrency"]).name
    rate, events = _ranged(cell["requests_per_s"]), _ranged(cell["events_per_s"]) if cell["events_per_s"] else "-"
    p50, p95 = (f"{cell[key]['median'] * 1e3:.2f}" for key in ("p50_s", "p95_s"))
    cpu_s = cell["server_cpu_s_per_request"]
    cpu = f"{cpu_s['median'] * 1e3:.3f}" if cpu_s else "-"
    return f"  {name:32}{rate:>24}{events:>28}{p50:>10}{p95:>10}{cpu:>16}"


def _ranged(spread: dict[str, Any]) -> str:
    return f"{spread['median']:,.0f} [{spread['low']:,.0f}, {spread['high']:,.0f}]"
