"""How many threads compute the steps: one for each core, or one, where all of them together are slower.

So it can be where a virtual machine has fewer cores than it says. Where other work kept the cores busy in the trial,
nothing is decided: it may end, and the threads help each other past it (src/team.h).
"""

import logging
import time
from statistics import median

import torch

from twofour.prune.machine.contention import Measurement
from twofour.prune.machine.processors import usable_cores
from twofour.serve.engine.runners import Chunk, Runner

TRIAL_S, FEWEST = 0.25, 2  # rounds of a step on one thread and a step on all
NEARLY_ALL, MARGIN = 0.8, 1.1  # one thread must win in so many of the rounds, each by so much
TOKEN = Chunk([0], 0, [0], range(1))

Round = tuple[float, float]  # seconds

log = logging.getLogger(__name__)


def default_count() -> int:
    return min(torch.get_num_threads(), usable_cores())


def settle(runner: Runner, asked: int | None) -> str | None:
    """Leave one thread to torch if that is faster and no number was asked for. Returns what a user must know."""
    count = torch.get_num_threads()
    if count < 2:
        return None
    trial = Measurement()
    if not _one_is_faster(rounds := _rounds(runner, count)):
        return None
    if trial.was_disturbed():
        log.info("one thread was faster than %d, but beside other work, which decides nothing", count)
        return None
    one, several = (f"{1e3 * median(seconds):.1f}" for seconds in zip(*rounds, strict=True))
    if asked is None:
        torch.set_num_threads(1)
    remedy = "--threads 1 is faster here" if asked else f"one computes, unless --threads {count} is given"
    note = f"a step takes {several} ms on {count} threads and {one} on one; {remedy}"
    log.warning("%s", note)
    return note


def _one_is_faster(rounds: list[Round]) -> bool:
    wins = sum(one * MARGIN < several for one, several in rounds)
    return len(rounds) >= FEWEST and wins >= NEARLY_ALL * len(rounds)


def _rounds(runner: Runner, count: int) -> list[Round]:
    _step(runner, 1), _step(runner, count)  # the first are not counted
    rounds, started = list[Round](), time.perf_counter()
    while time.perf_counter() - started < TRIAL_S:
        rounds.append((_step(runner, 1), _step(runner, count)))
    return rounds


def _step(runner: Runner, threads: int) -> float:
    torch.set_num_threads(threads)
    started = time.perf_counter()
    runner.forward([TOKEN])
    return time.perf_counter() - started
