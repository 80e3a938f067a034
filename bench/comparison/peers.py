"""Running servers of any make under the same load, in turns.

A round visits every number of requests at a time, and there every server with the same schedule, a different one first
in each round. Rounds differ in their seeds, so throughputs are compared round by round, with an interval over rounds;
latencies are those of all rounds together, of the steady part of each. A server whose process group is given is frozen
while others are measured; what another one does meanwhile is taken from them, and the gates of a run count it.
"""

import os
import re
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from statistics import median
from time import perf_counter, sleep
from typing import Any
from urllib.parse import urldefrag

from twofour.bench.comparison.experiment import Experiment
from twofour.bench.load import gates, metrics
from twofour.bench.load.endpoint import Endpoint, served_model
from twofour.bench.load.run import Load, Run, measure
from twofour.bench.load.wire import shown
from twofour.bench.load.workload import Lengths
from twofour.bench.stats import Distribution, paired_ratio
from twofour.bench.targets.servers import signal_group
from twofour.bench.turns import order
from twofour.prune.errors import InputError, ServerError
from twofour.prune.progress import Progress, counter

KIND = "twofour.bench.peers"
SCHEMA_VERSION = 1
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
    def awake(self, api_key: str | None = None) -> Iterator[None]:
        """Continue it for the length of a `with` block. Raises ServerError where it is not well again soon."""
        if self.group is None:
            yield
            return
        signal_group(self.group, signal.SIGCONT)
        try:
            self._wait(api_key)
            yield
        finally:
            signal_group(self.group, signal.SIGSTOP)

    def _wait(self, api_key: str | None) -> None:
        until = perf_counter() + THAW_S
        endpoint = Endpoint(self.url, self.model, api_key)
        while not endpoint.ready():
            if perf_counter() > until:
                raise ServerError(f"{self.name} is not well {THAW_S:g} s after it was continued; see its log")
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


@dataclass(frozen=True)
class Found:
    """The runs of every cell, by round. cut_off: what ended them before their time."""

    runs: Mapping[Cell, Sequence[Run]]
    cut_off: KeyboardInterrupt | ServerError | None = None


def peers(
    given: Sequence[str], plain: Sequence[str] = (), pids: Sequence[str] = (), api_key: str | None = None
) -> list[Peer]:
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
        Peer(name, url, model or served_model(url, api_key), name in plain, groups.get(name))
        for name, (url, model) in zip(names, addresses, strict=True)
    ]


def _group(given: str) -> tuple[str, int]:
    """Read NAME=PID of a process that leads its group, as all do that were started by setsid."""
    name, _, pid = given.partition("=")
    if not re.fullmatch("[0-9]{1,9}", pid) or not _leads(int(pid)):
        raise InputError(f"{given} does not name a process that leads its group; start the server by setsid")
    return name, int(pid)


def _leads(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


def compare(servers: Sequence[Peer], asked: Asked, progress: Progress, api_key: str | None = None) -> Found:
    """All groups that are given run again in the end, also after an interrupt or where a server fails.

    What was measured until then is kept; where that is nothing, the interrupt or the error comes out of here.
    """
    runs: dict[Cell, list[Run]] = {(n, peer.name): [] for n in asked.concurrency for peer in servers}
    try:
        with _frozen(servers):
            _rounds(runs, servers, asked, progress, api_key)
    except (KeyboardInterrupt, ServerError) as cut_off:
        if not any(runs.values()):
            raise
        return Found(runs, cut_off)
    return Found(runs)


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


def _rounds(
    runs: Mapping[Cell, list[Run]], servers: Sequence[Peer], asked: Asked, progress: Progress, api_key: str | None
) -> None:
    step = counter("measuring", asked.rounds * len(runs), progress)
    for round_ in range(asked.rounds):
        for n in asked.concurrency:
            for peer in order(list(servers), round_):
                with peer.awake(api_key):
                    runs[n, peer.name].append(measure(asked.load(peer, n, round_), api_key))
                step(f"round {round_ + 1} of {asked.rounds}, {peer.name}, {n} at a time")


def document(found: Found, servers: Sequence[Peer], asked: Asked) -> dict[str, Any]:
    """The result, without what ran it on which machine."""
    first, complete = servers[0].name, found.cut_off is None
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "peers": [asdict(peer) | {"url": shown(peer.url)} for peer in servers],
        "load": {"prompt_tokens": str(asked.prompt_tokens), "output_tokens": str(asked.output_tokens)}
        | {"rounds": asked.rounds, "seed": asked.seed},
        "complete": complete,
        "valid": complete and all(run.valid for runs in found.runs.values() for run in runs),
        "cells": [_cell(cell, runs, found.runs[cell[0], first]) for cell, runs in found.runs.items()],
    }


def _cell(cell: Cell, runs: Sequence[Run], first: Sequence[Run]) -> dict[str, Any]:
    records = [record for run in runs for record in metrics.steady(run.records)]
    together = metrics.summarise(records, 0.0, metrics.whole_window(records))
    rates, wanted = _rates(runs), _rates(first)
    pairs = list(zip(wanted, rates, strict=False))  # an interrupt may leave the one with a round more
    comparable = pairs and len(rates) == len(runs) and len(wanted) == len(first)
    return {
        "concurrency": cell[0],
        "peer": cell[1],
        "rounds": len(runs),
        "failed": sum(run.summary.failed for run in runs),
        "invalid": sorted({gate.name for run in runs for gate in gates.failed(run.gates)}),
        "output_tokens_per_s": rates,
        "of_the_first": asdict(paired_ratio(pairs, 0)) if comparable else None,
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
    if not document["complete"]:
        lines.append(f"CUT OFF: rounds of each, {', '.join(str(cell['rounds']) for cell in document['cells'])}")
    return "\n".join([*lines, "VALID" if document["valid"] else "INVALID: do not quote these numbers"])


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
