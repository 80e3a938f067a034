"""The result as one JSON document, made from the findings by one pure function. Unknown is null.

A ratio `a / b` is the time of a over that of b, how much faster b is: the geometric mean over the rounds, of which each
gives one pair. Of answers there are two: `step` is a decode step (the median of a turn), `whole` prompts and answers
together. Of prompts there is `first`, the time to their first token.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from statistics import fmean, median
from typing import Any

from twofour.bench.decode.measure import WARM_STEPS
from twofour.bench.stats import paired_ratio
from twofour.bench.turns import Cell
from twofour.bench.vllm.measure import Findings, Place, Turn

KIND = "twofour.bench.vllm"
SCHEMA_VERSION = 1
MOST_OTHERS = 0.05

QUANTITIES: Mapping[str, Callable[[Turn], float]] = {
    "step": lambda turn: median(turn.steps),
    "whole": lambda turn: turn.whole,
    "first": lambda turn: turn.first,
}


def document(found: Findings, baseline: str, made_by: Mapping[str, Any]) -> dict[str, Any]:
    """`made_by` as hardware.provenance says."""
    plan = found.plan
    cells = [_cell(cell, baseline) for cell in found.cells]
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "started": found.started.isoformat(timespec="seconds"),
        **made_by,
        "engine": dict(plan.engine),
        "steps": plan.steps,
        "steps_not_counted": WARM_STEPS,
        "rounds": plan.rounds,
        "baseline": baseline,
        "cut_off": found.cut_off,
        "most_others": MOST_OTHERS,
        "valid": not found.cut_off and all(cell["quiet"] is not False for cell in cells),
        "arms": {arm.name: {"model": arm.model.name, **found.facts[arm.name]} for arm in plan.arms},
        "cells": cells,
    }


def _cell(cell: Cell[Place, Turn], baseline: str) -> dict[str, Any]:
    place = cell.place
    shares = [turn.others for turns in cell.turns.values() for turn in turns if turn.others is not None]
    others = fmean(shares) if shares else None
    return asdict(place) | {
        "rounds": cell.rounds,
        "others": others,
        "quiet": None if others is None else others <= MOST_OTHERS,
        "arms": {name: _figures(place, turns, cell.turns[baseline]) for name, turns in cell.turns.items()},
    }


def _figures(place: Place, turns: Sequence[Turn], baseline: Sequence[Turn]) -> dict[str, Any]:
    return {
        name: _quantity(place, name, list(map(QUANTITIES[name], turns)), list(map(QUANTITIES[name], baseline)))
        for name in (("step", "whole") if place.steps else ("first",))
    }


def _quantity(place: Place, name: str, rounds: list[float], baseline: list[float]) -> dict[str, Any]:
    """`tokens_per_s`: those that were generated, or of a prompt."""
    tokens = {"step": place.batch, "whole": place.batch * (1 + WARM_STEPS + place.steps), "first": place.prompt}
    return {
        "median_s": median(rounds),
        "round_s": rounds,
        "tokens_per_s": tokens[name] / median(rounds),
        "against": asdict(paired_ratio(list(zip(rounds, baseline, strict=True)), seed=0)),
    }
