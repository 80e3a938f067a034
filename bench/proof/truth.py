"""The client against the truth: what it adds to the times that the mock wrote down."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

import numpy as np

from twofour.bench.load import metrics, workload
from twofour.bench.load.records import Record
from twofour.bench.load.run import Run, measure
from twofour.bench.load.service import Service
from twofour.bench.load.workload import Lengths, Schedule, synthetic
from twofour.bench.proof.mock import Mock, Script, Served, serving
from twofour.prune.machine.processors import usable_cpus

MODEL = "mock"


@dataclass(frozen=True)
class Added:
    """How far a run is from the truth, over the requests of its steady window."""

    requests: int
    ttft_s: float  # the truth: from hearing a request to writing its first token, in the mean
    mean_s: float  # what the client adds to it
    p99_s: float
    tpot_s: float  # the truth
    tpot_error: float  # of the client's mean, as a share of it


@contextmanager
def apart() -> Iterator[int | None]:
    """Keep this process off one CPU for the length of a `with` block: the mock's.

    None where there is only one, or where the system pins nothing.
    """
    *own, last = sorted(usable_cpus())
    if not own or not hasattr(os, "sched_setaffinity"):
        yield None
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, own)
    try:
        yield last
    finally:
        os.sched_setaffinity(0, before)


def closed(requests: int, prompt: int, output: int, concurrency: int, sigma: float = 0.3) -> Schedule:
    return synthetic(requests, Lengths(prompt, sigma), Lengths(output, sigma), 0, concurrency=concurrency)


def against(script: Script, schedule: Schedule, cpu: int | None = None) -> tuple[Run, Mock]:
    """One run against a mock, and what the mock says of it."""
    with serving(script, cpu) as mock:
        run = measure(Service(mock.url, MODEL), schedule)
    return run, mock


def pairs(run: Run, mock: Mock) -> list[tuple[Record, Served]]:
    """Every record that the mock heard of, beside what the mock did."""
    heard = {served.prompt: served for served in mock.served}
    prompts = {each.index: workload.marked(each, run.nonce) for each in run.schedule.requests}
    return [(record, heard[prompts[record.index]]) for record in run.records if prompts[record.index] in heard]


def added(run: Run, mock: Mock) -> Added:
    steady = {record.index for record in metrics.steady(run.records) if record.error is None}
    known = [(record, served) for record, served in pairs(run, mock) if record.index in steady]
    truths = [served.written[0][0] - served.received_at for _, served in known]
    late = [
        metrics.first_token(record) - metrics.sent(record) - truth
        for (record, _), truth in zip(known, truths, strict=True)
    ]
    tpots = [(mine, true) for record, served in known if (mine := metrics.tpot(record)) and (true := tpot(served))]
    mine_s, true_s = (fmean(column) for column in zip(*tpots, strict=True))
    return Added(
        len(known), fmean(truths), fmean(late), float(np.percentile(late, 99)), true_s, abs(mine_s / true_s - 1)
    )


def tpot(served: Served) -> float | None:
    (first_at, first), (last_at, _) = served.written[0], served.written[-1]
    later = sum(tokens for _, tokens in served.written) - first
    return (last_at - first_at) / later if later else None
