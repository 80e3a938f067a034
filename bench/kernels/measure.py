"""The measurement: the ceiling, then every matrix at every number of tokens, then the ceiling again."""

import gc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from statistics import median

import torch

from twofour.bench.gates import Gate, Pressure
from twofour.bench.kernels import contenders, cuda
from twofour.bench.kernels.ceiling import Ceiling, highest, last_level_cache_bytes, read_ceilings
from twofour.bench.kernels.contenders import Contender, Form
from twofour.bench.kernels.isa import held
from twofour.bench.kernels.plan import Matrix, Plan
from twofour.bench.kernels.race import Lap, Turn, cpu_turn, race
from twofour.prune.progress import Progress, Step, counter, silent
from twofour.serve.kernels import cpu

MOST_PRESSURE, MOST_DRIFT, MOST_SHARE = 0.10, 0.15, 1.10


@dataclass(frozen=True)
class Entry:
    """A contender without its weights, and its lap."""

    kernel: str
    weight_bytes: int
    copies: int
    note: str | None
    lap: Lap


@dataclass(frozen=True)
class Cell:
    part: str  # `linear` or `lm_head`
    matrix: Matrix
    tokens: int
    entries: Mapping[str, Entry]


@dataclass(frozen=True)
class Findings:
    """`not_measured`: why there are no cells, or, by contender, why it has none."""

    plan: Plan
    started: datetime
    isa: str
    ring_bytes: int
    cache_bytes: int | None
    ceilings: tuple[Ceiling, ...] = ()  # the one that counts is first
    gates: tuple[Gate, ...] = ()
    cells: tuple[Cell, ...] = ()
    not_measured: Mapping[str, str] = field(default_factory=dict)


def measure(plan: Plan, progress: Progress = silent) -> Findings:
    """Raises TwofourError where a kernel gives a wrong product."""
    if plan.device == "cuda":
        return _measure_cuda(plan, progress)
    threads = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        with held(plan.isa) as reason:
            return _without(plan, cpu.available(), reason) if reason else _measure_cpu(plan, progress)
    finally:
        torch.set_num_threads(threads)


def _measure_cpu(plan: Plan, progress: Progress) -> Findings:
    started, pressure = datetime.now(UTC), Pressure()
    cache_bytes = last_level_cache_bytes()
    ring = contenders.ring_bytes(cache_bytes)
    before = _announced(read_ceilings(plan.threads, cache_bytes), progress)
    cells = tuple(_cells(plan, ring, progress))
    after = read_ceilings(plan.threads, cache_bytes)
    best = _best_first(before, after)
    gates = (_pressure_gate(pressure.share()), _drift(before, after), _share_gate(cells, best[0]))
    return Findings(plan, started, cpu.available(), ring, cache_bytes, best, gates, cells)


def _measure_cuda(plan: Plan, progress: Progress) -> Findings:
    if reason := cuda.missing():
        return _without(plan, "none", reason)
    started = datetime.now(UTC)
    cache_bytes = cuda.cache_bytes()
    ring = contenders.ring_bytes(cache_bytes)
    before = _announced([cuda.copy_ceiling()], progress)
    cells = tuple(_cells(plan, ring, progress))
    after = [cuda.copy_ceiling()]
    best, refused = _best_first(before, after), {**cuda.NOT_MEASURED, **cuda.refusals(plan)}
    gates = (_drift(before, after), _share_gate(cells, best[0]))
    return Findings(plan, started, cuda.target(), ring, cache_bytes, best, gates, cells, refused)


def _cells(plan: Plan, ring: int, progress: Progress) -> list[Cell]:
    parts = [("linear", matrix, plan.tokens) for matrix in plan.linears]
    parts += [("lm_head", matrix, tuple(plan.head_tokens)) for matrix in plan.heads if plan.head_tokens]
    step = counter("cells", sum(len(tokens) for _, _, tokens in parts), progress)
    cells: list[Cell] = []
    for part, matrix, tokens in parts:
        found = contenders.with_copies(_forms(plan, part, matrix), ring)
        for count in tokens:
            cells.append(_cell(plan, part, matrix, count, found))
            step(f"{part} {matrix[0]} x {matrix[1]}, {count} tokens")
        del found
        gc.collect()  # a ring is hundreds of megabytes; none waits for the next
    return cells


def _forms(plan: Plan, part: str, matrix: Matrix) -> list[Form]:
    if plan.device == "cuda":
        return cuda.forms(part, matrix, plan.seed)
    dense = contenders.dense_forms(matrix, plan.seed)
    return dense if part == "lm_head" else [*contenders.sparse_forms(matrix, plan.seed), *dense]


def _cell(plan: Plan, part: str, matrix: Matrix, tokens: int, found: Sequence[Contender]) -> Cell:
    x = contenders.activations(tokens, matrix[1], plan.seed, plan.device)
    contenders.require_right(found, x)
    turns: dict[str, Turn] = {
        each.name: cuda.turn(each, x) if plan.device == "cuda" else cpu_turn(each, x, plan.threads) for each in found
    }
    laps = race(turns, plan.rounds, plan.target_s)
    entries = {
        each.name: Entry(each.kernel, each.weight_bytes, len(each.products), each.note, laps[each.name])
        for each in found
    }
    return Cell(part, matrix, tokens, entries)


def _announced(ceilings: list[Ceiling], progress: Progress) -> list[Ceiling]:
    best = highest(ceilings)
    progress(Step("ceiling", 1, 1, sum(best.seconds), f"{best.bytes_per_s / 1e9:.1f} GB/s by a {best.method}"))
    return ceilings


def _pressure_gate(share: float | None) -> Gate:
    return Gate("cpu_pressure", share, MOST_PRESSURE, "share", "something waits for a CPU; stop it and run again")


def _drift(before: Sequence[Ceiling], after: Sequence[Ceiling]) -> Gate:
    drift = abs(highest(after).bytes_per_s / highest(before).bytes_per_s - 1)
    return Gate("bandwidth_drift", drift, MOST_DRIFT, "share", "memory got faster or slower; stop what else uses it")


def _share_gate(cells: Sequence[Cell], ceiling: Ceiling) -> Gate:
    """Nothing is faster than memory: then the ceiling is wrong, or a weight was found in a cache."""
    entries = [entry for cell in cells for entry in cell.entries.values()]
    highest_share = max(ceiling.best_s(entry.weight_bytes) / median(entry.lap.seconds) for entry in entries)
    return Gate("share_of_ceiling", highest_share, MOST_SHARE, "share", "the ceiling was disturbed; run again")


def _best_first(before: Sequence[Ceiling], after: Sequence[Ceiling]) -> tuple[Ceiling, ...]:
    """One of each method."""
    best = [highest(pair) for pair in zip(before, after, strict=True)]
    return tuple(sorted(best, key=lambda ceiling: -ceiling.bytes_per_s))


def _without(plan: Plan, isa: str, reason: str) -> Findings:
    return Findings(plan, datetime.now(UTC), isa, 0, None, not_measured={"everything": reason})
