"""What a step costs around the model: look for commands, schedule, sample, write the report to the pipe.

The loop of the engine process runs as it does in service, in this thread, over a runner that returns stored logits. All
sequences of a turn have sent their prompts before it begins and decode together. Of their steps the median counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from statistics import median
from time import thread_time
from typing import Any, NamedTuple

import torch
from torch import Tensor

from twofour.bench.turns import whole_rounds
from twofour.serve.engine import child
from twofour.serve.engine.blocks import Blocks
from twofour.serve.engine.loop import Loop
from twofour.serve.engine.messages import Command, Report, encode_command
from twofour.serve.engine.runners import Chunk
from twofour.serve.engine.scheduler import Scheduler
from twofour.serve.engine.types import EngineInfo, Prompt, Sampling

BLOCK = 16  # tokens
GOALS_S = {1: 100e-6, 32: 500e-6}  # by sequences, where each takes its likeliest token
TOP_P = 0.95


class Way(NamedTuple):
    """How many sequences take their next token together, and how."""

    sequences: int
    top_p: float | None  # None: the likeliest token


WAYS = tuple(Way(sequences, top_p) for sequences in GOALS_S for top_p in (None, TOP_P))


@dataclass(frozen=True)
class Around:
    """Median seconds of a step around the model, in each round."""

    way: Way
    seconds: tuple[float, ...]


class StoredRunner:
    """In the place of a model: stored logits, by which the token of rank r has 1 / r^1.5 of the likeliest's share."""

    def __init__(self, rows: int, vocabulary: int, dtype: torch.dtype) -> None:
        random = torch.Generator().manual_seed(0)
        ranks = torch.stack([torch.randperm(vocabulary, generator=random) for _ in range(rows)]) + 1.0
        self.logits = (-1.5 * ranks.log()).to(dtype)
        self._likeliest = ranks.argmin(1).tolist()
        self.best: Sequence[int] = ()

    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        count = sum(len(chunk.wanted) for chunk in chunks)
        self.best = self._likeliest[:count]
        return self.logits[:count]


def measure(vocabulary: int, dtype: torch.dtype, context: int, steps: int, rounds: int) -> list[Around]:
    """After an interrupt: of the whole rounds until then."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        turns = {way: _turn(way, vocabulary, dtype, context, steps) for way in WAYS}
        for warm_up in turns.values():
            warm_up()
        found = whole_rounds(turns, range(rounds))
        return [Around(way, tuple(map(median, laps))) for way, laps in found.items()]
    finally:
        torch.set_num_threads(threads)


def document(found: Sequence[Around]) -> list[dict[str, Any]]:
    return [_entry(around) for around in found]


def _entry(around: Around) -> dict[str, Any]:
    goal_s = None if around.way.top_p else GOALS_S[around.way.sequences]
    middle = median(around.seconds)
    return {
        **around.way._asdict(),
        "seconds": list(around.seconds),
        "median_s": middle,
        "goal_s": goal_s,
        "reached": None if goal_s is None else middle <= goal_s,
    }


def lines(entries: Sequence[dict[str, Any]]) -> list[str]:
    return ["around the model: look for commands, schedule, sample, report", *map(_line, entries)]


def _line(entry: dict[str, Any]) -> str:
    way = "likeliest token" if entry["top_p"] is None else f"top_p {entry['top_p']:g}"
    verdict = "" if entry["goal_s"] is None else f", goal {entry['goal_s'] * 1e3:g}: "
    verdict += {True: "reached", False: "MISSED", None: ""}[entry["reached"]]
    return f"  {entry['sequences']:2} sequences, {way:<15} {entry['median_s'] * 1e3:8.3f} ms{verdict}"


def _turn(way: Way, vocabulary: int, dtype: torch.dtype, context: int, steps: int) -> Callable[[], list[float]]:
    blocks = Blocks(way.sequences * ((context + steps) // BLOCK + 2), BLOCK)  # one to spare: all are placed at once
    info = EngineInfo(
        "stored", context + steps + 1, vocabulary, (), BLOCK, blocks.count * BLOCK, 0, 0, {}, "", "", True
    )
    runner = StoredRunner(way.sequences, vocabulary, dtype)
    loop = Loop(runner, Scheduler(blocks, way.sequences, way.sequences * context), info)
    sampling = Sampling(steps + 1, temperature=float(way.top_p is not None), top_p=way.top_p or 1.0, seed=0)
    prompts = [
        Prompt(f"cmpl-{i:032x}", tuple((7 * t + i) % vocabulary for t in range(context)), sampling)
        for i in range(way.sequences)
    ]
    return lambda: laps(loop, prompts)[-steps:]  # the step before computed the prompts


def laps(loop: Loop, prompts: Sequence[Prompt]) -> list[float]:
    """Seconds of each step until all prompts have ended. Reports go through a pipe, as in service."""
    here, there = Pipe()
    arrivals, left, found = [list[Command](prompts)], len(prompts), list[float]()
    began = thread_time()

    def receive(timeout_s: float) -> list[Command] | None:
        commands = child.receive(here, 0.0 if arrivals else timeout_s)
        return None if commands is None else commands + (arrivals.pop() if arrivals else [])

    def send(report: Report) -> None:
        nonlocal began, left
        child.send(here, report)
        found.append(thread_time() - began)
        there.recv_bytes()
        left -= sum(piece.finish is not None for piece in report.pieces)
        if not left:
            there.send_bytes(encode_command(None))
        began = thread_time()

    loop.run(receive, send)
    return found
