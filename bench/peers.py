"""Running servers of any make under the same load, in turns.

A round visits every number of requests at a time, and there every server with the same schedule, a different one first
in each round. Rounds differ in their seeds, so throughputs are compared round by round, with an interval over rounds;
latencies are those of all rounds together. A server whose process group is given is frozen while others are measured;
what another one does meanwhile is taken from them, and the gates of a run count it.
"""

import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from statistics import median
from time import perf_counter, sleep
from typing import Any
from urllib.parse import urldefrag

from twofour.bench import gates, metrics
from twofour.bench.endpoint import Endpoint
from twofour.bench.experiment import Experiment
from twofour.bench.run import Load, Run, measure, served_model
from twofour.bench.servers import signal_group
from twofour.bench.stats import Distribution, paired_ratio
from twofour.bench.turns import order
from twofour.bench.wire import shown
from twofour.bench.workload import Lengths
from twofour.prune.errors import InputError, ServerError
from twofour.prune.progress import Progress, counter

KIND = "twofour.bench.peers"
THAW_S, POLL_S = 60.0, 0.05
REQUESTS, ROUNDS_OF_CLIENTS = 8, 2  # of a run: at least so many, and so many of each client


@dataclass(frozen=True)
class Peer:
    """A server by the name that the table gives it.

    plain: it knows OpenAI's API only, see client.jobs. group: its process group, to be frozen; None: it stays awake.
    """

    name: str
    url: str
    model: str
    plain: bool = False
    group: int | None = None

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Continue it for the length of a `with` block. Raises ServerError where it is not well again soon."""
        if self.group is None:
            yield
            return
        signal_group(self.group, signal.SIGCONT)
        try:
            self._wait()
            yield
        finally:
            signal_group(self.group, signal.SIGSTOP)

    def _wait(self) -> None:
        until = perf_counter() + THAW_S
        while not Endpoint(self.url, self.model).ready("/health"):
            if perf_counter() > until:
                raise ServerError(f"{self.name} is not healthy {THAW_S:g} s after it was continued; see its log")
            sleep(POLL_S)


@dataclass(frozen=True)
class Asked:
    """The load. concurrency: one run of each."""

    concurrency: Sequence[int]
    prompt_tokens: Lengths
    output_tokens: Lengths
    rounds: int = 5
    seed: int = 0

    def load(self, peer: Peer, concurrency: int, round_: int) -> Load:
        """The same for all peers."""
        experiment = Experiment(
            requests=max(REQUESTS, ROUNDS_OF_CLIENTS * concurrency),
            concurrency=concurrency,
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            rounds=self.rounds,
            seed=self.seed,
        )
        return replace(experiment.load(peer.url, peer.model, round_), plain=peer.plain)


Cell = tuple[int, str]  # requests at a time, name of the peer


def peers(given: Sequence[str], plain: Sequence[str] = (), pids: Sequence[str] = ()) -> list[Peer]:
    """Read NAME=URL or NAME=URL#MODEL, names, and NAME=PID. Raises InputError where that is not what is there."""
    parts = [text.partition("=") for text in given]
    names = [name for name, _, _ in parts]
    if len(set(names)) < len(names) or not all(name and "://" in url for name, _, url in parts):
        raise InputError(
            f"{shown(' '.join(given))} does not name servers; give NAME=URL or NAME=URL#MODEL, each name once"
        )
    groups = dict(map(_group, pids))
    if unknown := {*plain, *groups} - set(names):
        raise InputError(f"{min(unknown)} is no server here; give names of {', '.join(names)} to --plain and --pid")
    addresses = [urldefrag(url) for _, _, url in parts]
    return [
        Peer(name, url, model or served_model(url), name in plain, groups.get(name))
        for name, (url, model) in zip(names, addresses, strict=True)
    ]


def _group(given: str) -> tuple[str, int]:
    """Read NAME=PID of a process that leads its group, as all do that were started by setsid."""
    name, _, pid = given.partition("=")
    if not pid.isdigit() or not _leads(int(pid)):
        raise InputError(f"{given} does not name a process that leads its group; start the server by setsid")
    return name, int(pid)


def _leads(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


def compare(servers: Sequence[Peer], asked: Asked, progress: Progress) -> dict[Cell, list[Run]]:
    """The runs of every cell, by round. All groups that are given run again in the end."""
    with _frozen(servers):
        return _rounds(servers, asked, progress)


@contextmanager
def _frozen(servers: Sequence[Peer]) -> Iterator[None]:
    groups = [peer.group for peer in servers if peer.group is not None]
    try:
        for group in groups:
            signal_group(group, signal.SIGSTOP)
        yield
    finally:
        for group in groups:
            signal_group(group, signal.SIGCONT)


def _rounds(servers: Sequence[Peer], asked: Asked, progress: Progress) -> dict[Cell, list[Run]]:
    found: dict[Cell, list[Run]] = {(n, peer.name): [] for n in asked.concurrency for peer in servers}
    step = counter("measuring", asked.rounds * len(found), progress)
    for round_ in range(asked.rounds):
        for n in asked.concurrency:
            for peer in order(list(servers), round_):
                with peer.awake():
                    found[n, peer.name].append(measure(asked.load(peer, n, round_)))
                step(f"round {round_ + 1} of {asked.rounds}, {peer.name}, {n} at a time")
    return found


def document(found: Mapping[Cell, Sequence[Run]], servers: Sequence[Peer], asked: Asked) -> dict[str, Any]:
    """The result, without what ran it on which machine."""
    first = servers[0].name
    return {
        "kind": KIND,
        "peers": [asdict(peer) | {"url": shown(peer.url)} for peer in servers],
        "load": {"prompt_tokens": str(asked.prompt_tokens), "output_tokens": str(asked.output_tokens)}
        | {"rounds": asked.rounds, "seed": asked.seed},
        "cells": [_cell(cell, runs, found[cell[0], first]) for cell, runs in found.items()],
    }


def _cell(cell: Cell, runs: Sequence[Run], first: Sequence[Run]) -> dict[str, Any]:
    records = [record for run in runs for record in run.records]
    together = metrics.summarise(records, 0.0, metrics.whole_window(records))
    rates, wanted = _rates(runs), _rates(first)
    comparable = len(rates) == len(wanted) == len(runs)
    return {
        "concurrency": cell[0],
        "peer": cell[1],
        "failed": together.failed,
        "invalid": sorted({gate.name for run in runs for gate in gates.failed(run.gates)}),
        "output_tokens_per_s": rates,
        "of_the_first": asdict(paired_ratio(list(zip(wanted, rates, strict=True)), 0)) if comparable else None,
        **{name: _quantiles(getattr(together, name)) for name in ("ttft", "itl_tok", "e2e")},
    }


def _rates(runs: Sequence[Run]) -> list[float]:
    return [rate for run in runs if (rate := run.summary.output_tokens_per_s)]


def _quantiles(values: Distribution) -> dict[str, Any]:
    return {"n": values.n, "p50": values.p50, "p95": values.p95}


def table(document: Mapping[str, Any]) -> str:
    """For a person: a block for each number of requests at a time."""
    load = document["load"]
    lines = [
        f"prompts of {load['prompt_tokens']} and answers of {load['output_tokens']} tokens, {load['rounds']} rounds, "
        f"seed {load['seed']}; ratios of output tokens/s to the first, with a 95 % interval over rounds",
        f"{'':26}{'tokens/s':>10}{'ratio':>22}{'TTFT p50':>10}{'p95':>10}{'ITL p50':>10}{'p95':>10}  ms",
    ]
    for cell in document["cells"]:
        lines += [_row(cell), *(f"    not valid: {name}" for name in cell["invalid"])]
    return "\n".join(lines)


def _row(cell: Mapping[str, Any]) -> str:
    ratio, rates = cell["of_the_first"], cell["output_tokens_per_s"]
    spread = "-" if ratio is None else f"{ratio['point']:.2f}x"
    if ratio and ratio["low"]:
        spread += f" [{ratio['low']:.2f}, {ratio['high']:.2f}]"
    latencies = [cell[name][p] for name in ("ttft", "itl_tok") for p in ("p50", "p95")]
    numbers = "".join(f"{'-' if value is None else f'{value * 1e3:.1f}':>10}" for value in latencies)
    failed = f"  {cell['failed']} FAILED" if cell["failed"] else ""
    rate = f"{median(rates):.1f}" if rates else "-"
    return f"{cell['concurrency']:>3} at a time, {cell['peer']:11}{rate:>10}{spread:>22}{numbers}{failed}"
