"""The turns: in every round each arm answers in its turn, for every number of requests and every length of prompt.

In a turn of answers some prompts are given at once. In a turn of prompts they are given one after the other, and one
token ends each. Who has no turn stands still: processes of vLLM spin while they wait for each other.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from twofour.bench.decode.measure import WARM_STEPS, prompt_tokens
from twofour.bench.decode.worker import Worker
from twofour.bench.targets import frozen
from twofour.bench.turns import Cell, whole_rounds
from twofour.bench.vllm.others import Others
from twofour.prune.errors import InputError
from twofour.prune.format.folder import resolve
from twofour.prune.progress import Counter, Progress, counter, silent

PREFILL_TOKENS = 256  # of a turn of prompts, or one prompt

Outputs = Sequence[tuple[float, int]]  # seconds since the prompts were given, and how many requests got a token


@dataclass(frozen=True)
class Arm:
    name: str
    model: Path  # a folder


@dataclass(frozen=True)
class Plan:
    arms: Sequence[Arm]
    engine: Mapping[str, Any]  # arguments of vLLM's engine
    batches: Sequence[int]
    context: int
    prefills: Sequence[int]
    steps: int
    rounds: int


@dataclass(frozen=True)
class Place:
    """What a turn computes. Without steps: prompts alone."""

    prompt: int
    batch: int
    steps: int = 0

    @property
    def prompts(self) -> int:
        return self.batch if self.steps else max(1, PREFILL_TOKENS // self.prompt)

    def __str__(self) -> str:
        return f"{self.batch} at a time after {self.prompt:,}" if self.steps else f"prompts of {self.prompt:,}"


@dataclass(frozen=True)
class Turn:
    """Seconds: of each decode step that counts; of all answers; until the first token of a prompt."""

    steps: Sequence[float]
    whole: float
    first: float
    others: float | None  # the share of the CPUs that others took


@dataclass
class Findings:
    plan: Plan
    started: datetime
    facts: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # by arm
    cells: list[Cell[Place, Turn]] = field(default_factory=list)
    cut_off: bool = False


def read_arms(texts: Sequence[str]) -> list[Arm]:
    """Of NAME=MODEL each. Raises InputError."""
    arms = list[Arm]()
    for text in texts:
        name, equals, model = text.partition("=")
        if not (name and equals and model):
            raise InputError(f"{text} is no arm; give NAME=MODEL")
        if name in (arm.name for arm in arms):
            raise InputError(f"the name {name} is given twice; give each arm its own")
        arms.append(Arm(name, resolve(model)))
    return arms


def measure(plan: Plan, progress: Progress = silent) -> Findings:
    """After an interrupt: of the whole rounds until then."""
    found = Findings(plan, datetime.now(UTC))
    places = [Place(plan.context, batch, plan.steps) for batch in plan.batches]
    places += [Place(prompt, 1) for prompt in plan.prefills]
    tokens = prompt_tokens(plan.arms[0].model, max(place.prompt + place.prompts for place in places))
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(TemporaryDirectory(prefix="twofour-vllm-")))
        workers, found.facts = _loaded(plan, places, scratch, stack)
        _measure_places(found, places, workers, tokens, progress)
    return found


def engine_arguments(plan: Plan, places: Sequence[Place]) -> dict[str, Any]:
    """What was asked for, and what is needed."""
    length = max(place.prompt + WARM_STEPS + place.steps + 1 for place in places)
    return {"max_model_len": length, "max_num_seqs": max(plan.batches), **plan.engine}


def _loaded(
    plan: Plan, places: Sequence[Place], scratch: Path, stack: ExitStack
) -> tuple[dict[str, Worker], dict[str, dict[str, Any]]]:
    """One after the other: each takes all CPUs while it compiles, and the memory of its weights twice."""
    workers, facts = dict[str, Worker](), dict[str, dict[str, Any]]()
    options = engine_arguments(plan, places)
    for arm in plan.arms:
        print(f"starting vLLM with {arm.name}", file=sys.stderr, flush=True)
        given = json.dumps({"model": str(arm.model), "options": options})
        command = [sys.executable, "-P", "-m", "twofour.bench.vllm.child", given]
        worker = stack.enter_context(Worker(arm.name, command, scratch / f"{len(workers)}.log"))
        facts[arm.name], workers[arm.name] = worker.ask("load"), worker
        frozen.freeze(worker.group)
    return workers, facts


def _measure_places(
    found: Findings, places: Sequence[Place], workers: Mapping[str, Worker], tokens: list[int], progress: Progress
) -> None:
    rounds = found.plan.rounds
    step = counter("turns", len(places) * rounds * len(workers), progress)
    try:
        for place in places:
            for worker in workers.values():
                turn(worker, replace(place, steps=min(place.steps, 1)), tokens)  # of this size nothing has run before
            turns = {name: partial(_counted, worker, place, tokens, step) for name, worker in workers.items()}
            found.cells.append(Cell(place, whole_rounds(turns, range(rounds))))
            if found.cells[-1].rounds < rounds:
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        if not found.cells:
            raise
        found.cut_off = True


def _counted(worker: Worker, place: Place, tokens: list[int], step: Counter) -> Turn:
    found = turn(worker, place, tokens)
    step(f"{worker.name}, {place}")
    return found


def turn(worker: Worker, place: Place, tokens: list[int]) -> Turn:
    """Prompts differ by where in the text they begin."""
    prompts = [tokens[first : first + place.prompt] for first in range(place.prompts)]
    frozen.thaw(worker.group)
    try:
        others = Others(worker.group)
        if place.steps:
            outputs = worker.ask("answer", prompts=prompts, tokens=1 + WARM_STEPS + place.steps)["outputs"]
            return Turn(steps(outputs, place.batch)[WARM_STEPS:], outputs[-1][0], outputs[0][0], others.share())
        firsts = [worker.ask("answer", prompts=[prompt], tokens=1)["outputs"][0][0] for prompt in prompts]
        return Turn([], sum(firsts), median(firsts), others.share())
    finally:
        frozen.freeze(worker.group)


def steps(outputs: Outputs, batch: int) -> list[float]:
    """Seconds of each step in which all requests decoded: between two outputs for all of them."""
    pairs = pairwise(outputs)
    return [after - before for (before, had), (after, got) in pairs if had == got == batch]
