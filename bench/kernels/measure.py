"""The measurement: the ceiling, then every matrix at every number of tokens, then the ceiling again."""

import gc
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from statistics import median

import torch
from torch import Tensor

from twofour.bench.kernels import contenders, cuda
from twofour.bench.kernels.ceiling import Ceiling, highest, last_level_cache_bytes, read_ceilings
from twofour.bench.kernels.contenders import Contender, Form
from twofour.bench.kernels.grid import Grid, Matrix
from twofour.bench.kernels.isa import held
from twofour.bench.kernels.race import Lap, Turn, cpu_turn, race
from twofour.bench.load.gates import Gate, Pressure
from twofour.prune.errors import TwofourError
from twofour.prune.progress import Progress, Step, counter, silent
from twofour.serve.kernels import cpu
from twofour.serve.kernels.race import Failed

log = logging.getLogger(__name__)

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
class Dropped:
    """A contender that failed or was wrong, and where; `tokens` None: for all numbers of tokens."""

    part: str
    matrix: Matrix
    tokens: int | None
    contender: str
    reason: str


@dataclass(frozen=True)
class Findings:
    """`not_measured`: why there are no cells, or, by contender, why it has none. Not `complete`: it was interrupted."""

    grid: Grid
    started: datetime
    isa: str
    ring_bytes: int
    cache_bytes: int | None
    ceilings: tuple[Ceiling, ...] = ()  # the one that counts is first
    gates: tuple[Gate, ...] = ()
    cells: tuple[Cell, ...] = ()
    not_measured: Mapping[str, str] = field(default_factory=dict)
    dropped: tuple[Dropped, ...] = ()
    complete: bool = True


Keep = Callable[[Findings], object]  # what was found so far, after every cell


def measure(grid: Grid, progress: Progress = silent, keep: Keep = lambda found: None) -> Findings:
    """A contender that fails or is wrong is dropped, with its reason. After an interrupt: what was found until then."""
    if grid.device == "cuda":
        return _measure_cuda(grid, progress, keep)
    threads = torch.get_num_threads()
    torch.set_num_threads(grid.threads)
    try:
        with held(grid.isa) as reason:
            return _without(grid, cpu.available(), reason) if reason else _measure_cpu(grid, progress, keep)
    finally:
        torch.set_num_threads(threads)


def _measure_cpu(grid: Grid, progress: Progress, keep: Keep) -> Findings:
    started, pressure = datetime.now(UTC), Pressure()
    cache_bytes = last_level_cache_bytes()
    ring = contenders.ring_bytes(cache_bytes)
    before = _announced(read_ceilings(grid.threads, cache_bytes), progress)
    begun = Findings(grid, started, cpu.available(), ring, cache_bytes, _best_first(before, before), complete=False)
    found = _cells(begun, progress, keep)
    if not found.complete:
        return found
    after = read_ceilings(grid.threads, cache_bytes)
    best = _best_first(before, after)
    gates = (_pressure_gate(pressure.share()), _drift(before, after), _share_gate(found.cells, best[0]))
    return replace(found, ceilings=best, gates=gates)


def _measure_cuda(grid: Grid, progress: Progress, keep: Keep) -> Findings:
    if reason := cuda.missing():
        return _without(grid, "none", reason)
    started = datetime.now(UTC)
    cache_bytes = cuda.cache_bytes()
    ring = contenders.ring_bytes(cache_bytes)
    before = _announced([cuda.copy_ceiling()], progress)
    begun = Findings(grid, started, cuda.target(), ring, cache_bytes, tuple(before), not_measured=cuda.NOT_MEASURED)
    found = _cells(replace(begun, complete=False), progress, keep)
    if not found.complete:
        return found
    after = [cuda.copy_ceiling()]
    best, refused = _best_first(before, after), {**cuda.NOT_MEASURED, **cuda.refusals(grid)}
    gates = (_drift(before, after), _share_gate(found.cells, best[0]))
    return replace(found, ceilings=best, gates=gates, not_measured=refused)


def _cells(begun: Findings, progress: Progress, keep: Keep) -> Findings:
    """All cells, kept after each; or those until an interrupt, and then it is not complete."""
    found, grid = begun, begun.grid
    parts = [("linear", matrix, grid.tokens) for matrix in grid.linears]
    parts += [("lm_head", matrix, tuple(grid.head_tokens)) for matrix in grid.heads if grid.head_tokens]
    step = counter("cells", sum(len(tokens) for _, _, tokens in parts), progress)
    try:
        for part, matrix, tokens in parts:
            row = Row(grid, part, matrix)
            row.make(begun.ring_bytes)
            for count in tokens:
                cells = row.cell(count)
                found = replace(found, cells=(*found.cells, *cells), dropped=(*found.dropped, *row.take_dropped()))
                keep(found)
                step(f"{part} {matrix[0]} x {matrix[1]}, {count} tokens")
            del row
            gc.collect()  # a ring is hundreds of megabytes: it goes before the next is made
    except KeyboardInterrupt:
        return found
    return replace(found, complete=True)


class Row:
    """A matrix and its contenders. One that fails is dropped, for good or for one cell, and the others go on."""

    def __init__(self, grid: Grid, part: str, matrix: Matrix) -> None:
        self._grid, self._part, self._matrix = grid, part, matrix
        self._contenders: list[Contender] = []
        self._dropped: list[Dropped] = []

    def make(self, ring: int) -> None:
        forms: list[Form] = []
        for name, make in _makers(self._grid, self._part, self._matrix).items():
            with self._dropping(name, None):
                forms.append(make())
        with self._dropping("all", None):
            self._contenders = contenders.with_copies(forms, ring)

    def cell(self, tokens: int) -> list[Cell]:
        """One cell, or none where nobody is left."""
        x = contenders.activations(tokens, self._matrix[1], self._grid.seed, self._grid.device)
        turns: dict[str, Turn] = {}
        for each in self._contenders:
            with self._dropping(each.name, tokens):
                contenders.require_right([each], x)
                turns[each.name] = _turn(self._grid, each, x)
        laps = self._race(turns, tokens)
        entries = {
            each.name: Entry(each.kernel, each.weight_bytes, len(each.products), each.note, laps[each.name])
            for each in self._contenders
            if each.name in laps
        }
        return [Cell(self._part, self._matrix, tokens, entries)] if entries else []

    def take_dropped(self) -> list[Dropped]:
        """Those since the last call."""
        taken, self._dropped = self._dropped, []
        return taken

    def _race(self, turns: dict[str, Turn], tokens: int) -> dict[str, Lap]:
        while turns:
            named = {name: _naming(name, turn) for name, turn in turns.items()}
            try:
                return race(named, self._grid.rounds, self._grid.target_s)
            except Failed as failed:
                self._drop(failed.form, tokens, failed.cause)
                del turns[failed.form]
        return {}

    @contextmanager
    def _dropping(self, contender: str, tokens: int | None) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # whatever a kernel, its compiler or its library raises
            self._drop(contender, tokens, error)

    def _drop(self, contender: str, tokens: int | None, error: Exception) -> None:
        is_ours = isinstance(error, TwofourError)
        log.warning("%s is dropped: %s", contender, error, exc_info=None if is_ours else error)
        reason = str(error) if is_ours else f"{type(error).__name__}: {error}"
        self._dropped.append(Dropped(self._part, self._matrix, tokens, contender, reason.partition("\n")[0]))


def _makers(grid: Grid, part: str, matrix: Matrix) -> contenders.Makers:
    if grid.device == "cuda":
        return cuda.makers(part, matrix, grid.seed)
    dense = contenders.dense_makers(matrix, grid.seed)
    return dense if part == "lm_head" else {**contenders.sparse_makers(matrix, grid.seed), **dense}


def _turn(grid: Grid, contender: Contender, x: Tensor) -> Turn:
    return cuda.turn(contender, x) if grid.device == "cuda" else cpu_turn(contender, x, grid.threads)


def _naming(name: str, turn: Turn) -> Turn:
    def named(calls: int) -> float:
        try:
            return turn(calls)
        except Exception as error:
            raise Failed(name, error) from error

    return named


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
    """Nothing is faster than memory: if something seems so, the ceiling is wrong, or a weight was in a cache."""
    entries = [entry for cell in cells for entry in cell.entries.values()]
    shares = [ceiling.best_s(entry.weight_bytes) / median(entry.lap.seconds) for entry in entries]
    highest_share = max(shares, default=None)
    return Gate("share_of_ceiling", highest_share, MOST_SHARE, "share", "the ceiling was disturbed; run again")


def _best_first(before: Sequence[Ceiling], after: Sequence[Ceiling]) -> tuple[Ceiling, ...]:
    """The higher one of each method; of these the highest first."""
    best = [highest(pair) for pair in zip(before, after, strict=True)]
    return tuple(sorted(best, key=lambda ceiling: -ceiling.bytes_per_s))


def _without(grid: Grid, isa: str, reason: str) -> Findings:
    return Findings(grid, datetime.now(UTC), isa, 0, None, not_measured={"everything": reason})
