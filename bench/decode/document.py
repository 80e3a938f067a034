"""The result as one JSON document, made from the findings by one pure function. Unknown is null.

A ratio `a / b` is the time of a step of a over that of b, how much faster b is: the geometric mean over the rounds, of
which each gives one pair of medians. The bytes of a step are its weights, the head among them, and the cached keys and
values; `share_of_bandwidth` is how long the machine takes to read as many, over what the step took.

Some runtimes have threads that wait for each other's processors. What others do to all arms alike is what the calmest
of them met: by that a place is judged to be quiet.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import takewhile
from statistics import fmean, median
from typing import Any

import numpy as np

from twofour.bench.decode.arms import Arm
from twofour.bench.decode.measure import WARM_STEPS, Findings, Place, Turn
from twofour.bench.stats import paired_ratio
from twofour.bench.turns import Cell

KIND = "twofour.bench.decode"
SCHEMA_VERSION = 1
MOST_PRESSURE = 0.10


def document(found: Findings, baselines: Sequence[str], made_by: Mapping[str, Any]) -> dict[str, Any]:
    """`made_by` as hardware.provenance says."""
    plan = found.plan
    cells = [_cell(found, cell, baselines) for cell in found.cells]
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "started": found.started.isoformat(timespec="seconds"),
        **made_by,
        "steps": plan.steps,
        "steps_not_counted": WARM_STEPS,
        "rounds": plan.rounds,
        "baselines": list(baselines),
        "cut_off": found.cut_off,
        "most_pressure": MOST_PRESSURE,
        "valid": not found.cut_off and all(cell["quiet"] is not False for cell in cells),
        "bandwidth": {str(threads): each.facts() for threads, each in found.ceilings.items()},
        "arms": {arm.name: _arm(arm, found.facts[arm.name]) for arm in plan.arms},
        "cells": cells,
    }


def _arm(arm: Arm, facts: Mapping[str, Any]) -> dict[str, Any]:
    return {"runtime": arm.runtime, "options": dict(arm.options), "model": arm.model.name, **facts}


def _cell(found: Findings, cell: Cell[Place, Turn], baselines: Sequence[str]) -> dict[str, Any]:
    place = cell.place
    pressures = {name: _pressure(turns) for name, turns in cell.turns.items()}
    least = min((share for share in pressures.values() if share is not None), default=None)
    rounds = {name: [median(turn.seconds) for turn in turns] for name, turns in cell.turns.items()}
    own = {name: _figures(found, cell, name) for name in cell.turns}
    return asdict(place) | {
        "rounds": cell.rounds,
        "cpu_pressure": least,
        "quiet": None if least is None else least <= MOST_PRESSURE,
        "arms": {
            name: figures
            | {
                "cpu_pressure": pressures[name],
                "against": {
                    each: asdict(paired_ratio(list(zip(rounds[name], rounds[each], strict=True)), seed=0))
                    for each in baselines
                    if each != name
                },
                "same_tokens": {
                    each: _alike(cell.turns[name][0], cell.turns[each][0]) for each in baselines if each != name
                },
            }
            for name, figures in own.items()
        },
    }


def _pressure(turns: Sequence[Turn]) -> float | None:
    """Of an arm, over its turns."""
    shares = [turn.pressure for turn in turns if turn.pressure is not None]
    return fmean(shares) if shares else None


def _figures(found: Findings, cell: Cell[Place, Turn], name: str) -> dict[str, Any]:
    seconds = [each for turn in cell.turns[name] for each in turn.seconds]
    p10, middle, p90 = (float(cut) for cut in np.percentile(seconds, [10, 50, 90]))
    ceiling = found.ceilings[cell.place.threads]
    weights, cached = found.facts[name]["weight_bytes"], _cached_bytes(found, cell)
    return {
        "median_s": middle,
        "p10_s": p10,
        "p90_s": p90,
        "round_medians_s": [median(turn.seconds) for turn in cell.turns[name]],
        "weight_bytes": weights,
        "cached_bytes": cached,
        "bytes_per_s": (weights + cached) / middle,
        "share_of_bandwidth": ceiling.best_s(weights + cached) / middle,
    }


def _cached_bytes(found: Findings, cell: Cell[Place, Turn]) -> int:
    """Of the keys and values that a step in the middle of a turn reads, in 16 bits, as all runtimes here have them."""
    place = cell.place
    tokens = place.context + WARM_STEPS + found.plan.steps // 2
    return found.cached_bytes_per_token * tokens * place.batch


def _alike(turn: Turn, other: Turn) -> int:
    """How many tokens from the first on are the same."""
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(turn.tokens, other.tokens, strict=True)))
