"""The arms of a comparison under other loads than its own: at equal concurrency, at an equal rate, at an equal SLO.

A speed-up belongs to a load. At an equal rate arms differ in latency, at equal concurrency in throughput, and at an
equal SLO in the highest rate that keeps it, by which machines must be bought. A view is a sweep over the arms (see
`sweep`), the first of which is what the others are compared with, and what a million tokens cost there.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from twofour.bench.comparison.experiment import Experiment
from twofour.bench.comparison.figures import mean, verdict
from twofour.bench.comparison.served import Arm
from twofour.bench.money.cost import Price
from twofour.bench.stats import paired_ratio
from twofour.bench.sweep.document import document
from twofour.bench.sweep.ladder import climb
from twofour.bench.sweep.limit import find_limits
from twofour.bench.sweep.load import Load, Pace
from twofour.bench.targets.running import Running
from twofour.prune.errors import InputError
from twofour.prune.progress import Progress

WITHIN = 0.02  # how near a search for the highest rate comes


@dataclass(frozen=True)
class Also:
    """Which views. search: for the highest rate at which each arm keeps the Slo."""

    paces: Sequence[Pace] = ()
    search: bool = False


NOTHING_ELSE = Also()


def refuse_without_slo(experiment: Experiment, also: Also) -> None:
    if also.search and experiment.slo is None:
        raise InputError("--also-search looks for the highest rate that keeps an SLO; give --slo, too")


def views(
    arms: Mapping[str, Arm],
    experiment: Experiment,
    also: Also,
    progress: Progress,
    label: Callable[[str], str] = str,
) -> tuple[list[dict[str, Any]], bool]:
    """A sweep of the closed loops, one of the open ones, the search; and whether an interrupt ended them."""
    running = [_running(label(name), arm, experiment) for name, arm in arms.items()]
    found = list[dict[str, Any]]()
    try:
        for sweep in _wanted(also):
            found.append(sweep(running, experiment, progress))
            if not found[-1]["complete"]:
                return found, True
    except KeyboardInterrupt:  # before anything was measured
        return found, True
    return found, False


Sweep = Callable[[Sequence[Running], Experiment, Progress], dict[str, Any]]


def _wanted(also: Also) -> Iterator[Sweep]:
    for paces in ([pace for pace in also.paces if (pace.rate is None) == closed] for closed in (True, False)):
        if paces:
            yield partial(_ladder, sorted(paces, key=lambda pace: pace.concurrency or pace.rate or 0))
    if also.search:
        yield _search


def _ladder(paces: Sequence[Pace], running: Sequence[Running], asked: Experiment, progress: Progress) -> dict[str, Any]:
    load = _load(asked)
    return document(climb(running, load, paces, asked.rounds, progress), running, load, asked.rounds)


def _search(running: Sequence[Running], asked: Experiment, progress: Progress) -> dict[str, Any]:
    load = _load(asked)
    found, limits = find_limits(running, load, asked.rounds, WITHIN, progress)
    return document(found, running, load, asked.rounds, limits)


def _load(asked: Experiment) -> Load:
    return Load(asked.traffic, asked.slo)


def _running(name: str, arm: Arm, asked: Experiment) -> Running:
    return Running(name, arm.service(asked), arm.server.pid if arm.server else None)


def with_costs(view: Mapping[str, Any], price: Price | None) -> dict[str, Any]:
    """The view, and what a million tokens cost each arm there; nothing where the rate is given, not the arm's own."""
    by_place = _rates(view)
    first = view["servers"][0]["name"]
    costs = [
        _cost(place, server, rates, by_place[place].get(first), price)
        for place, servers in by_place.items()
        for server, rates in servers.items()
    ]
    return {**view, "costs": costs}


Rates = Mapping[int, float | None]  # tokens per second by round


def _rates(view: Mapping[str, Any]) -> dict[str, dict[str, dict[int, float | None]]]:
    """By place and arm: closed loops, and the highest rate that keeps the SLO."""
    found = dict[str, dict[str, dict[int, float | None]]]()
    for cell in view["cells"] if view["limits"] is None else ():
        if cell["rate"] is None:
            rates = {run["round"]: run["summary"]["total_tokens_per_s"] for run in cell["runs"]}
            found.setdefault(f"{cell['concurrency']} at a time", {})[cell["server"]] = rates
    for search in view["searches"] or ():
        place = found.setdefault("the highest rate that keeps the SLO", {})
        place.setdefault(search["server"], {})[search["round"]] = (
            None if search["why"] else search["total_tokens_per_s"]
        )
    return found


def _cost(place: str, server: str, rates: Rates, first: Rates | None, price: Price | None) -> dict[str, Any]:
    own, base = ([each.get(round_) for round_ in sorted(rates)] for each in (rates, first or {}))
    known = [rate for rate in own if rate]
    pairs = [(1 / old, 1 / new) for old, new in zip(base, own, strict=True) if old and new]
    ratio = paired_ratio(pairs, 0) if pairs and len(pairs) == len(own) else None
    middle = mean(known) if len(known) == len(own) else None
    return {
        "place": place,
        "server": server,
        "blended": 1e6 * price.usd_per_hour / 3600 / middle if price and middle else None,
        "ratio": asdict(ratio) if ratio else None,
        "verdict": verdict(ratio.point, "lower", ratio.low, ratio.high) if ratio and ratio.low else None,
    }


def kept(view: Mapping[str, Any]) -> dict[str, Any]:
    """A view as a report keeps it: without the documents of its runs."""
    return {**view, "cells": [{name: cell[name] for name in cell if name != "runs"} for cell in view["cells"]]}
