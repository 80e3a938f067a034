"""Running servers of any make under the same load, in turns.

A round visits every number of requests at a time, and there every server in turn (see `turns`), all with the same
schedule. Rounds differ in their seeds, so throughputs are compared round by round, with an interval over rounds;
latencies are those of the steady parts of all rounds together. A server whose process group is given is frozen while
others are measured. One that is not may take CPU time from them meanwhile; the gates of a run notice.
"""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any
from urllib.parse import urldefrag

from twofour.bench.comparison.experiment import Experiment
from twofour.bench.load import gates, metrics
from twofour.bench.load.access import OPEN, Access
from twofour.bench.load.endpoint import Endpoint, served_model
from twofour.bench.load.run import Run, measure
from twofour.bench.load.service import Service
from twofour.bench.load.wire import shown
from twofour.bench.load.workload import Lengths
from twofour.bench.stats import Distribution, paired_ratio
from twofour.bench.targets import frozen
from twofour.bench.turns import order
from twofour.prune.errors import InputError, ServerError
from twofour.prune.progress import Progress, counter

KIND = "twofour.bench.peers"
SCHEMA_VERSION = 1
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

    def awake(self, access: Access = OPEN) -> AbstractContextManager[None]:
        """Not frozen for the length of a `with` block. Raises ServerError where it is not ready again soon."""
        if self.group is None:
            return nullcontext()
        return frozen.awake(self.group, Endpoint(self.url, self.model, access), self._give_up)

    def _give_up(self, too_late: bool) -> None:
        if too_late:
            raise ServerError(f"{self.name} is not well {frozen.THAW_S:g} s after it was continued; see its log")


def experiment(concurrency: int, prompt_tokens: Lengths, output_tokens: Lengths, rounds: int, seed: int) -> Experiment:
    """The load at one number of requests at a time."""
    return Experiment(
        requests=max(REQUESTS, ROUNDS_OF_CLIENTS * concurrency),
        concurrency=concurrency,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        rounds=rounds,
        seed=seed,
    )


Cell = tuple[int, str]  # requests at a time, name of the peer


@dataclass(frozen=True)
class Found:
    """The runs of every cell, by round. cut_off: what ended them before their time."""

    runs: Mapping[Cell, Sequence[Run]]
    cut_off: KeyboardInterrupt | ServerError | None = None


def read_peers(
    given: Sequence[str], plain: Sequence[str] = (), pids: Sequence[str] = (), access: Access = OPEN
) -> list[Peer]:
    """Read NAME=URL or NAME=URL#MODEL, names, and NAME=PID. Raises InputError for anything else."""
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
        Peer(name, url, model or served_model(url, access), name in plain, groups.get(name))
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


def compare_peers(
    servers: Sequence[Peer], experiments: Sequence[Experiment], progress: Progress, access: Access = OPEN
) -> Found:
    """Measure all servers by all experiments, which differ in their concurrency only.

    After an interrupt, or where a server fails: what was measured until then. Where that is nothing, the interrupt or
    the error comes out of here. All frozen groups go on in the end.
    """
    runs: dict[Cell, list[Run]] = {(_at_a_time(each), peer.name): [] for each in experiments for peer in servers}
    try:
        with frozen.frozen([peer.group for peer in servers if peer.group is not None]):
            _rounds(runs, servers, experiments, progress, access)
    except (KeyboardInterrupt, ServerError) as cut_off:
        if not any(runs.values()):
            raise
        return Found(runs, cut_off)
    return Found(runs)


def _rounds(
    runs: Mapping[Cell, list[Run]],
    servers: Sequence[Peer],
    experiments: Sequence[Experiment],
    progress: Progress,
    access: Access,
) -> None:
    rounds = experiments[0].rounds
    step = counter("measuring", rounds * len(runs), progress)
    for round_ in range(rounds):
        for each in experiments:
            for peer in order(servers, round_):
                service = Service(peer.url, peer.model, access, peer.plain, each.timeout_s)
                with peer.awake(access):
                    runs[_at_a_time(each), peer.name].append(measure(service, each.schedule(round_)))
                step(f"round {round_ + 1} of {rounds}, {peer.name}, {each.concurrency} at a time")


def _at_a_time(experiment: Experiment) -> int:
    return experiment.concurrency or 0


def document(found: Found, servers: Sequence[Peer], experiments: Sequence[Experiment]) -> dict[str, Any]:
    """The result, without what ran it on which machine."""
    first, complete, asked = servers[0].name, found.cut_off is None, experiments[0]
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
