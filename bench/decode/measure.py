"""The turns: every arm computes the same prompt, then decodes in turns, for every context, batch and number of threads.

A turn is some steps after the prompt, of which the first few are not counted: they bring back into the caches what the
others have pushed out. All turns of a cell begin at the same position.
"""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twofour.bench.decode import gguf, llama
from twofour.bench.decode.arms import LLAMA_CPP, Arm
from twofour.bench.decode.worker import Worker
from twofour.bench.kernels.ceiling import Ceiling, highest, last_level_cache_bytes, read_ceilings
from twofour.bench.load.gates import Pressure
from twofour.bench.turns import Cell, whole_rounds
from twofour.prune.model.anatomy import cached_numbers
from twofour.prune.progress import Counter, Progress, counter, silent

WARM_STEPS = 3
LOADING = 2  # at a time
SETTLE_S = 0.03  # after a turn the threads of some runtimes spin for a while


@dataclass(frozen=True)
class Plan:
    arms: Sequence[Arm]
    threads: Sequence[int]
    contexts: Sequence[int]
    batches: Sequence[int]
    steps: int
    rounds: int
    node: Path  # the folder in which node-llama-cpp was installed
    gguf: Path | None  # where GGUF files are kept; None: nowhere

    @property
    def room(self) -> int:
        """How many tokens a turn adds to a sequence."""
        return WARM_STEPS + self.steps


@dataclass(frozen=True)
class Turn:
    seconds: Sequence[float]  # of each step
    tokens: Sequence[int]  # of the first sequence, from the first step on, those that are not counted included
    pressure: float | None  # the share of it in which something waited for a CPU


@dataclass(frozen=True)
class Place:
    context: int
    batch: int
    threads: int

    def __str__(self) -> str:
        return f"context {self.context:,}, {self.batch} at a time, {self.threads} thread{'s' * (self.threads > 1)}"


@dataclass
class Findings:
    plan: Plan
    started: datetime
    facts: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # by arm
    ceilings: Mapping[int, Ceiling] = field(default_factory=dict)  # by threads
    cached_bytes_per_token: int = 0
    cells: list[Cell[Place, Turn]] = field(default_factory=list)
    cut_off: bool = False


def measure(plan: Plan, progress: Progress = silent) -> Findings:
    """After an interrupt: of the whole rounds until then."""
    found = Findings(plan, datetime.now(UTC), cached_bytes_per_token=cached_bytes(plan.arms[0].model))
    prompt = prompt_tokens(plan.arms[0].model, max(plan.contexts))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="twofour-decode-")))
        workers, found.facts = _loaded(plan, scratch, stack)
        before = {threads: _ceiling(threads) for threads in plan.threads}
        _measure_cells(found, workers, prompt, progress)
        found.ceilings = {threads: highest([each, _ceiling(threads)]) for threads, each in before.items()}
    return found


def prompt_tokens(model: Path, count: int) -> list[int]:
    """Plain English that every Python has with it, in the model's own tokens."""
    from pydoc_data.topics import topics

    from transformers import AutoTokenizer

    text = "\n\n".join(topics[name] for name in sorted(topics))[: 16 * count]
    tokens: list[int] = AutoTokenizer.from_pretrained(model)(text, add_special_tokens=False).input_ids
    return (tokens * -(-count // len(tokens)))[:count]


def cached_bytes(model: Path) -> int:
    """Of keys and values of one token, in 16 bits."""
    from transformers import AutoConfig

    return 2 * cached_numbers(AutoConfig.from_pretrained(model).get_text_config())


def _loaded(plan: Plan, scratch: Path, stack: ExitStack) -> tuple[dict[str, Worker], dict[str, dict[str, Any]]]:
    workers, facts = dict[str, Worker](), dict[str, dict[str, Any]]()
    for arm in plan.arms:
        command, facts[arm.name] = _command(arm, plan, scratch)
        workers[arm.name] = stack.enter_context(Worker(arm.name, command, scratch / f"{len(workers)}.log"))
    with ThreadPoolExecutor(LOADING) as pool:
        for name, found in zip(workers, pool.map(_load, workers.values()), strict=True):
            facts[name] |= found
    return workers, facts


def _load(worker: Worker) -> dict[str, Any]:
    print(f"loading {worker.name}", file=sys.stderr, flush=True)
    return worker.ask("load")


def _command(arm: Arm, plan: Plan, scratch: Path) -> tuple[list[str], dict[str, Any]]:
    """What runs an arm, and what is known of it before it runs."""
    if arm.runtime != LLAMA_CPP:
        most = {"batch": max(plan.batches), "length": max(plan.contexts) + plan.room}
        given = {"model": str(arm.model), "options": dict(arm.options), **most}
        return [sys.executable, "-P", "-m", "twofour.bench.decode.child", arm.runtime, json.dumps(given)], {}
    llama.require(plan.node)
    file = gguf.made(arm.model, arm.options.get("weights", "bf16"), plan.gguf or scratch)
    known = {"gguf": file.name, "gguf_sha256": gguf.digest(file), "weight_bytes": gguf.weight_bytes(file)}
    return llama.command(plan.node, file, arm.options.get("flash-attention", "auto"), plan.room), known


def _ceiling(threads: int) -> Ceiling:
    return highest(read_ceilings(threads, last_level_cache_bytes()))


def _measure_cells(found: Findings, workers: Mapping[str, Worker], prompt: list[int], progress: Progress) -> None:
    plan = found.plan
    cells = list(product(plan.contexts, plan.batches))
    step = counter("turns", len(cells) * len(plan.threads) * plan.rounds * len(workers), progress)
    try:
        for context, batch in cells:
            for worker in workers.values():
                worker.ask("prepare", prompt=prompt[:context], batch=batch)
            for threads in plan.threads:
                found.cells.append(_cell(plan, workers, Place(context, batch, threads), step))
                if found.cells[-1].rounds < plan.rounds:
                    raise KeyboardInterrupt
    except KeyboardInterrupt:
        if not found.cells:
            raise
        found.cut_off = True


def _cell(plan: Plan, workers: Mapping[str, Worker], place: Place, step: Counter) -> Cell[Place, Turn]:
    def turn(worker: Worker) -> Turn:
        time.sleep(SETTLE_S)
        pressure = Pressure()
        answer = worker.ask("turn", threads=place.threads, warm=WARM_STEPS, steps=plan.steps)
        share = pressure.share()
        step(f"{worker.name}, {place}")
        return Turn(answer["seconds"], answer["tokens"], share)

    turns = whole_rounds({name: partial(turn, worker) for name, worker in workers.items()}, range(plan.rounds))
    return Cell(place, turns)
