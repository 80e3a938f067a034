"""Are the intervals right? Thousands of simulated runs on a server whose truth is known.

The runs are those of `simulation`: 1,000 requests, Poisson arrivals, lognormal lengths. Two arms of a pair get the same
load, as in `bench compare`, and each has noise of its own in every step.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from statistics import fmean
from typing import TypeVar

import numpy as np

from twofour.bench.proof import simulation
from twofour.bench.proof.batching import Steps
from twofour.bench.proof.simulation import Answered
from twofour.bench.stats import Estimate, Ratio, paired_ratio, replicated
from twofour.prune.machine.processors import usable_cpus

STEPS = Steps(base_s=0.008, read_s=30e-6, decode_s=60e-6, sequences=32, reads=2048)
PROMPT, OUTPUT = 128, 64
NOISE = 0.02  # of each step
DRIFT = 0.005  # of a whole run: what the machine is faster or slower in it, as paired runs of one server differ
REQUESTS = 1000
SETTLING = 500  # requests
T = TypeVar("T")
_OTHERS = 10**7  # the first seed that no interval has


def run(steps: Steps, load: float, schedule: int, noise: int, requests: int = REQUESTS) -> list[Answered]:
    """One run in an open loop at this share of the capacity. schedule, noise: seeds."""
    asked = simulation.poisson(requests, load * STEPS.capacity(PROMPT, OUTPUT), schedule, PROMPT, OUTPUT)
    return sorted(simulation.open_loop(steps, asked, _uneven(noise)))


def slower(share: float) -> Steps:
    return replace(STEPS, base_s=STEPS.base_s * share, read_s=STEPS.read_s * share, decode_s=STEPS.decode_s * share)


def comparison(other: Steps, load: float, pairs: int, seed: int, requests: int = REQUESTS) -> Ratio:
    """TPOT of another server over that of `STEPS`, by as many pairs of runs."""
    found = []
    for pair in range(pairs):
        schedule = seed * pairs + pair
        first, second = (run(arm, load, schedule, 2 * schedule + at, requests) for at, arm in enumerate((STEPS, other)))
        found.append((fmean(each.tpot for each in first), fmean(each.tpot for each in second)))
    return paired_ratio(found, seed)


def alarms(comparisons: int, pairs: int = 4, requests: int = 100) -> float:
    """The share of comparisons of a server with itself that find a difference."""
    return _share(partial(_alarm, pairs, requests), comparisons)


def power(comparisons: int, effect: float = 1.03, pairs: int = 6) -> float:
    """The share of comparisons that find a server with steps this much longer slower, at 70 % load."""
    return _share(partial(_finds, effect, pairs), comparisons)


def coverage(intervals: int, load: float = 0.9, runs: int = 10) -> float:
    """The share of intervals for the p95 of the time to the first token, each of so many runs, that hold the truth.

    That is the p95 of all requests of hundreds of other runs.
    """
    others = _each(partial(settled, load, requests=REQUESTS), range(_OTHERS, _OTHERS + 600))
    truth = float(np.percentile(np.concatenate(others), 95))
    return _share(partial(_covers, load, runs, truth), intervals)


def _alarm(pairs: int, requests: int, seed: int) -> bool:
    return not _holds(comparison(STEPS, 0.7, pairs, seed, requests), 1.0)


def _finds(effect: float, pairs: int, seed: int) -> bool:
    low = comparison(slower(effect), 0.7, pairs, seed).low
    return low is not None and low > 1


def _covers(load: float, runs: int, truth: float, seed: int) -> bool:
    return _holds(replicated([settled(load, seed * runs + each, REQUESTS) for each in range(runs)], 95), truth)


def _share(judge: Callable[[int], bool], seeds: int) -> float:
    return fmean(_each(judge, range(seeds)))


def _each(work: Callable[[int], T], seeds: range) -> list[T]:
    """What comes of each seed, by a process for each CPU."""
    workers = len(usable_cpus())
    with ProcessPoolExecutor(workers, get_context("spawn")) as pool:
        return list(pool.map(work, seeds, chunksize=-(-len(seeds) // workers // 4)))


def cost_half_width(pairs: int = 6, concurrency: int = 16) -> float:
    """Of the interval of a cost ratio, as a share of it, in a closed loop: cost goes as one over the throughput."""
    found = []
    for pair in range(pairs):
        asked = simulation.poisson(REQUESTS, 1.0, pair, PROMPT, OUTPUT)
        ends = [
            simulation.closed_loop(arm, asked, concurrency, _uneven(2 * pair + at))[-1].last_at
            for at, arm in enumerate((STEPS, slower(0.8)))
        ]
        found.append((ends[0], ends[1]))
    ratio = paired_ratio(found, 0)
    assert ratio.low is not None and ratio.high is not None
    return (ratio.high - ratio.low) / 2 / ratio.point


def settled(load: float, seed: int, requests: int) -> list[float]:
    """The times to the first token of a run, without those of its beginning, when the server was empty."""
    return [each.ttft for each in run(STEPS, load, seed, seed, requests + SETTLING)[SETTLING:]]


def _uneven(seed: int) -> Callable[[], float]:
    drift, step = simulation.noise(-seed, DRIFT)(), simulation.noise(seed, NOISE)
    return lambda: drift * step()


def _holds(found: Ratio | Estimate, truth: float) -> bool:
    return found.low is not None and found.high is not None and found.low <= truth <= found.high
