"""The result as one JSON document, made from the findings by one pure function. Unknown is null.

A ratio `a / b` is the time of a over that of b: how much faster b is, the geometric mean over the rounds, each of
which gives one pair. GB/s and the share of the ceiling count the bytes of the weight as laid out; the activations
stay in the cache.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from twofour.bench.kernels.ceiling import BYTES_PER_WEIGHT, Ceiling
from twofour.bench.kernels.grid import KIND, Matrix, Model
from twofour.bench.kernels.measure import Cell, Dropped, Findings
from twofour.bench.kernels.never_slower import name, never_slower
from twofour.bench.stats import paired_ratio

SCHEMA_VERSION = 1
RATIOS = (
    ("torch bf16", "served"),
    ("torch bf16", "2:4 bf16"),
    ("dense twin", "2:4 bf16"),
    ("2:4 bf16", "2:4 int8"),
    ("torch bf16", "dense twin"),
    ("torch bf16", "2:4 triton"),
    ("torch bf16", "2:4 cusparselt"),
)


def document(
    found: Findings, made_by: Mapping[str, Any], torch_isa: str, torch_environment: Mapping[str, str]
) -> dict[str, Any]:
    """`made_by` as hardware.provenance says, `torch_isa` and `torch_environment` as torch was held, see isa."""
    grid, seed = found.grid, found.grid.seed
    ceiling = found.ceilings[0] if found.ceilings else None
    cells = [_cell(cell, ceiling, seed) for cell in found.cells]
    sums = [each for model in grid.models for each in _sums(model, found, ceiling)]
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "started": found.started.isoformat(timespec="seconds"),
        **made_by,
        "device": grid.device,
        "isa": found.isa,
        "torch_isa": torch_isa,
        "torch_environment": dict(torch_environment),
        "threads": grid.threads,
        "clock": _clock(grid.device, grid.threads),
        "rounds": grid.rounds,
        "seed": seed,
        "target_s": grid.target_s,
        "cache_bytes": found.cache_bytes,
        "ring_bytes": found.ring_bytes,
        "models": [_model(model) for model in grid.models],
        "ceiling": _ceiling(found.ceilings) if found.ceilings else None,
        "gates": [asdict(gate) | {"passed": gate.passed} for gate in found.gates],
        "complete": found.complete,
        "dropped": [_dropped(each) for each in found.dropped],
        "valid": _is_valid(found),
        "sums": sums,
        "never_slower": never_slower(cells, sums, seed),
        "not_measured": dict(found.not_measured),
        "cells": cells,
    }


def _is_valid(found: Findings) -> bool:
    """All was measured, and nobody was wrong."""
    return (
        bool(found.cells) and found.complete and not found.dropped and all(g.passed is not False for g in found.gates)
    )


def _dropped(each: Dropped) -> dict[str, Any]:
    where = {"part": each.part, "rows": each.matrix[0], "columns": each.matrix[1], "tokens": each.tokens}
    return where | {"contender": each.contender, "reason": each.reason}


def _clock(device: str, threads: int) -> str:
    if device == "cuda":
        return "CUDA events around graph replays"
    return "CPU time of the thread" if threads == 1 else "wall clock"


def _model(model: Model) -> dict[str, Any]:
    linears = [{"rows": rows, "columns": columns, "count": n} for (rows, columns), n in model.linears.items()]
    head = {"rows": model.head[0], "columns": model.head[1]} if model.head else None
    return {"name": model.name, "linears": linears, "lm_head": head}


def _ceiling(ceilings: Sequence[Ceiling]) -> dict[str, Any]:
    ceiling, *others = ceilings
    formats = {
        each: {
            "bytes_per_weight": nbytes,
            "s_per_million_weights": ceiling.best_s(nbytes * 1e6),
            "against_dense_bf16": BYTES_PER_WEIGHT["dense bf16"] / nbytes,
        }
        for each, nbytes in BYTES_PER_WEIGHT.items()
    }
    return _bandwidth(ceiling) | {"formats": formats, "others": [_bandwidth(other) for other in others]}


def _bandwidth(ceiling: Ceiling) -> dict[str, Any]:
    return ceiling.facts() | {"seconds": list(ceiling.seconds)}


def _cell(cell: Cell, ceiling: Ceiling | None, seed: int) -> dict[str, Any]:
    contenders = {
        each: {
            "kernel": entry.kernel,
            "note": entry.note,
            "copies": entry.copies,
            "calls": entry.lap.calls,
            **_figures(entry.lap.seconds, entry.weight_bytes, ceiling),
        }
        for each, entry in cell.entries.items()
    }
    where = {"part": cell.part, "rows": cell.matrix[0], "columns": cell.matrix[1], "tokens": cell.tokens}
    return where | {"contenders": contenders, "ratios": _ratios(contenders, seed)}


def _figures(seconds: Sequence[float], weight_bytes: int, ceiling: Ceiling | None) -> dict[str, Any]:
    p10, middle, p90 = (float(cut) for cut in np.percentile(seconds, [10, 50, 90]))
    return {
        "weight_bytes": weight_bytes,
        "seconds": list(seconds),
        "median_s": middle,
        "p10_s": p10,
        "p90_s": p90,
        "bytes_per_s": weight_bytes / middle,
        "share_of_ceiling": ceiling.best_s(weight_bytes) / middle if ceiling else None,
    }


def _ratios(contenders: Mapping[str, Mapping[str, Any]], seed: int) -> dict[str, Any]:
    """One pair for each round, of what two contenders took in it."""
    return {
        name(slower, faster): asdict(
            paired_ratio(list(zip(contenders[faster]["seconds"], contenders[slower]["seconds"], strict=True)), seed)
        )
        for slower, faster in RATIOS
        if {slower, faster} <= contenders.keys()
    }


def _sums(model: Model, found: Findings, ceiling: Ceiling | None) -> list[dict[str, Any]]:
    """All 2:4 linears of a model, one after the other: what a user waits for."""
    sums = []
    for tokens in found.grid.tokens:
        cells = {cell.matrix: cell for cell in found.cells if cell.part == "linear" and cell.tokens == tokens}
        if model.linears.keys() <= cells.keys():
            own = {matrix: cells[matrix] for matrix in model.linears}
            contenders = {each: _sum(each, model.linears, own, ceiling) for each in _common(own)}
            where = {"model": model.name, "tokens": tokens}
            sums.append(where | {"contenders": contenders, "ratios": _ratios(contenders, found.grid.seed)})
    return sums


def _common(cells: Mapping[Matrix, Cell]) -> list[str]:
    """The contenders that took part everywhere, in their order."""
    return [each for each in next(iter(cells.values())).entries if all(each in cell.entries for cell in cells.values())]


def _sum(
    contender: str, linears: Mapping[Matrix, int], cells: Mapping[Matrix, Cell], ceiling: Ceiling | None
) -> dict[str, Any]:
    entries = [(cells[matrix].entries[contender], count) for matrix, count in linears.items()]
    rounds = zip(*([count * s for s in entry.lap.seconds] for entry, count in entries), strict=True)
    return _figures(
        [sum(each) for each in rounds], sum(entry.weight_bytes * count for entry, count in entries), ceiling
    )
