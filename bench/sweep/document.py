"""A sweep as one JSON document, by one pure function. Unknown is null.

`cells` are what was visited: a server at a pace, with one run for each round and its figures together. Ratios are of a
server to the first, round by round, with an interval over the rounds. Latencies are those of the steady parts of all
rounds together. `limits` are the highest rates at which each server kept the Slo, from one search a round; of a ladder,
`highest` are the highest paces that kept it in every round.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from twofour.bench.load import metrics
from twofour.bench.load import run as single
from twofour.bench.stats import Distribution, paired_ratio
from twofour.bench.sweep.limit import Limit
from twofour.bench.sweep.load import Load, Pace
from twofour.bench.sweep.visit import Found, Visit
from twofour.bench.targets.running import Running

KIND = "twofour.bench.sweep"
SCHEMA_VERSION = 1
DRIFT = {"latency_drift"}  # the gate that near its limit a server fails by chance

ByRound = Mapping[int, float]


def document(
    found: Found, servers: Sequence[Running], load: Load, rounds: int, limits: Sequence[Limit] | None = None
) -> dict[str, Any]:
    """The result, without what ran it on which machine. limits: of a search; None: it was a ladder."""
    cells, chance = _cells(found.visits), set() if limits is None else DRIFT
    names = [server.name for server in servers]
    complete = found.cut_off is None
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "servers": [server.as_dict() for server in servers],
        "load": load.described() | {"rounds": rounds},
        "complete": complete,
        "valid": complete and not any(visit.spoiled - chance for visit in found.visits),
        "cells": [_cell(visits, cells.get((visits[0].pace, names[0]), []), chance) for visits in cells.values()],
        "highest": [_highest(name, found.visits) for name in names] if load.slo and limits is None else None,
        "limits": None if limits is None else [_limit(name, names[0], limits) for name in names],
        "searches": None if limits is None else [_search(limit, found.visits) for limit in limits],
    }


def _cells(visits: Sequence[Visit]) -> dict[tuple[Pace, str], list[Visit]]:
    cells = dict[tuple[Pace, str], list[Visit]]()
    for visit in visits:
        cells.setdefault((visit.pace, visit.server), []).append(visit)
    return cells


def _cell(visits: Sequence[Visit], first: Sequence[Visit], chance: set[str]) -> dict[str, Any]:
    records = [record for visit in visits for record in metrics.steady(visit.run.records)]
    together = metrics.summarise(records, 0.0, metrics.whole_window(records))
    slos = [visit.run.slo for visit in visits if visit.run.slo]
    return {
        "server": visits[0].server,
        **asdict(visits[0].pace),
        "rounds": len(visits),
        "failed": sum(visit.run.summary.failed for visit in visits),
        "over_capacity": any(visit.over_capacity for visit in visits),
        "invalid": sorted({gate for visit in visits for gate in visit.spoiled} - chance),
        "output_tokens_per_s": list(_rates(visits).values()),
        "of_the_first": _ratio(_rates(first), _rates(visits)),
        **{name: _quantiles(getattr(together, name)) for name in ("ttft", "ttft_sched", "itl_tok", "tpot", "e2e")},
        "goodput_per_s": [slo.goodput_per_s for slo in slos] or None,
        "attained": [slo.attained for slo in slos] or None,
        "runs": [{"round": visit.round} | single.document(visit.run, with_records=False) for visit in visits],
    }


def _rates(visits: Sequence[Visit]) -> dict[int, float]:
    return {visit.round: rate for visit in visits if (rate := visit.run.summary.output_tokens_per_s)}


def _ratio(first: ByRound, other: ByRound) -> dict[str, Any] | None:
    """`other` over `first` in those rounds that have both, with its interval."""
    pairs = [(first[round_], other[round_]) for round_ in sorted(first.keys() & other.keys())]
    return asdict(paired_ratio(pairs, 0)) if pairs else None


def _quantiles(values: Distribution) -> dict[str, Any]:
    return {"n": values.n, "mean": values.mean, "p50": values.p50, "p95": values.p95}


def _highest(name: str, visits: Sequence[Visit]) -> dict[str, Any]:
    """Null where the server kept the Slo at none."""
    verdicts = dict[Pace, bool]()
    for visit in visits:
        if visit.server == name:
            kept = bool(visit.run.slo and visit.run.slo.attained) and not visit.over_capacity
            verdicts[visit.pace] = verdicts.get(visit.pace, True) and kept
    kept_at = [pace for pace, kept in verdicts.items() if kept]
    best = max(kept_at, key=lambda pace: pace.concurrency or pace.rate or 0, default=None)
    return {"server": name, "concurrency": best and best.concurrency, "rate": best and best.rate}


def _limit(name: str, first: str, limits: Sequence[Limit]) -> dict[str, Any]:
    """A limit that one round lacks is not known; where a search ended early, it is at least so much."""
    own = [limit for limit in limits if limit.server == name]
    rates, wanted = _lows(name, limits), _lows(first, limits)
    whole = bool(own) and len(rates) == len(own)
    at_least = any(limit.bracket.high is None or limit.why for limit in own)
    return {
        "server": name,
        "rate": asdict(paired_ratio([(1.0, rate) for rate in rates.values()], 0)) if whole else None,
        "of_the_first": _ratio(wanted, rates) if whole else None,
        "at_least": at_least,
        "why": sorted({limit.why for limit in own if limit.why}),
    }


def _lows(name: str, limits: Sequence[Limit]) -> dict[int, float]:
    return {each.round: each.bracket.low for each in limits if each.server == name and each.bracket.low}


def _search(limit: Limit, visits: Sequence[Visit]) -> dict[str, Any]:
    own = [visit for visit in visits if (visit.server, visit.round) == (limit.server, limit.round)]
    at = next((visit.run for visit in own if limit.bracket.low and visit.pace.rate == limit.bracket.low), None)
    return {
        "server": limit.server,
        "round": limit.round,
        "low": limit.bracket.low,
        "high": limit.bracket.high,
        "why": limit.why,
        "seed": own[0].run.schedule.made_of["seed"],
        "goodput_per_s": at.slo.goodput_per_s if at and at.slo else None,
        "output_tokens_per_s": at.summary.output_tokens_per_s if at else None,
        "total_tokens_per_s": at.summary.total_tokens_per_s if at else None,
    }
