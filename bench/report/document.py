"""The report as one JSON document, made from the findings by one pure function. Unknown is null.

An arm's figure is the geometric mean over the rounds of that figure of each run; so the ratio of two figures
is the geometric mean of the paired ratios, and the interval belongs to exactly the ratio that one reads off.
Every ratio is 2:4 over dense.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import exp, inf, log
from statistics import fmean
from typing import Any

from twofour.bench import run as single
from twofour.bench.cost import Cost, Price, cost
from twofour.bench.experiment import ARMS, ArmFacts, ArmRun, Experiment, Findings
from twofour.bench.metrics import Summary
from twofour.bench.stats import paired_ratio

SCHEMA_VERSION = 1
SAME_WITHIN = 0.005  # for what has no interval because it does not vary


@dataclass(frozen=True)
class Metric:
    of: Callable[[Summary], float | None]
    unit: str
    better: str  # `lower` or `higher`


METRICS = {
    "ttft_p50": Metric(lambda s: s.ttft.p50, "s", "lower"),
    "ttft_p95": Metric(lambda s: s.ttft.p95, "s", "lower"),
    "ttft_sched_p50": Metric(lambda s: s.ttft_sched.p50, "s", "lower"),
    "tpot_mean": Metric(lambda s: s.tpot.mean, "s", "lower"),
    "itl_gap_p50": Metric(lambda s: s.itl_gap.p50, "s", "lower"),
    "itl_gap_p95": Metric(lambda s: s.itl_gap.p95, "s", "lower"),
    "e2e_p50": Metric(lambda s: s.e2e.p50, "s", "lower"),
    "output_tokens_per_s": Metric(lambda s: s.output_tokens_per_s, "tokens/s", "higher"),
    "total_tokens_per_s": Metric(lambda s: s.total_tokens_per_s, "tokens/s", "higher"),
    "requests_per_s": Metric(lambda s: s.requests_per_s, "requests/s", "higher"),
}


def document(found: Findings) -> dict[str, Any]:
    return {
        "kind": "twofour.bench.compare",
        "schema_version": SCHEMA_VERSION,
        "started": found.started.isoformat(timespec="seconds"),
        "command": list(found.command),
        "versions": dict(found.versions),
        "hardware": asdict(found.hardware) | {"summary": str(found.hardware)},
        "load": _load(found.experiment),
        "placement": asdict(found.placement) if found.placement else None,
        "arms": {name: _arm(found.arms[name]) for name in ARMS},
        "valid": all(each.run.valid for each in found.runs),
        "gates": _gates(found.runs),
        "primary": found.experiment.primary,
        "metrics": {name: _metric(found, metric) for name, metric in METRICS.items()},
        "memory": _memory(found.arms),
        "quality": _quality(found),
        "cost": _cost(found),
        "baselines": _baselines(found.arms["dense"]),
        "samples": _samples(found),
        "notes": _notes(found),
        "runs": [_run(each) for each in found.runs],
    }


def verdict(ratio: float | None, better: str, low: float | None = None, high: float | None = None) -> str | None:
    """Is 2:4 better or worse? `unclear`: the interval holds 1. Without one: `same` within SAME_WITHIN."""
    if ratio is None:
        return None
    if low is None or high is None:
        low, high = ratio * (1 - SAME_WITHIN), ratio * (1 + SAME_WITHIN)
        unclear = "same"
    else:
        unclear = "unclear"
    if low <= 1 <= high:
        return unclear
    return "better" if (ratio < 1) == (better == "lower") else "worse"


def _load(experiment: Experiment) -> dict[str, Any]:
    lengths = {"prompt_tokens": str(experiment.prompt_tokens), "output_tokens": str(experiment.output_tokens)}
    order = [list(experiment.order(round_)) for round_ in range(experiment.rounds)]
    return asdict(experiment) | lengths | {"order": order, "summary": str(experiment)}


def _arm(arm: ArmFacts) -> dict[str, Any]:
    kernels = dict(arm.after.kernels) if arm.after else {}
    return {
        "given": arm.given,
        "model": arm.model,
        "command": list(arm.command) if arm.command else None,
        "kernels": kernels or None,
        "prefix_hit_share": _prefix_hits(arm),
    }


def _prefix_hits(arm: ArmFacts) -> float | None:
    """Share of the prompt tokens of this comparison that the server's counters found in its prefix cache."""
    states = [arm.before, arm.after]
    hits = [state.prefix_hit_tokens for state in states if state]
    queried = [state.prefix_queried_tokens for state in states if state]
    if len(hits) < 2 or None in hits or None in queried:
        return None
    asked = (queried[1] or 0) - (queried[0] or 0)
    return ((hits[1] or 0) - (hits[0] or 0)) / asked if asked else None


def _gates(runs: Sequence[ArmRun]) -> list[dict[str, Any]]:
    """Each gate at its worst over the runs."""
    by_name: dict[str, list[Any]] = {}
    for each in runs:
        for gate in each.run.gates:
            by_name.setdefault(gate.name, []).append(gate)
    summed = []
    for gates in by_name.values():
        worst = max(gates, key=lambda gate: -inf if gate.value is None else gate.value)
        failed_runs = sum(gate.passed is False for gate in gates)
        summed.append(asdict(worst) | {"passed": worst.passed, "failed_runs": failed_runs, "runs": len(gates)})
    return summed


def _metric(found: Findings, metric: Metric) -> dict[str, Any]:
    values = {arm: [metric.of(each.run.summary) for each in _runs_of(found.runs, arm)] for arm in ARMS}
    return {"unit": metric.unit, "better": metric.better} | _compared(values, metric.better, found)


def _compared(values: Mapping[str, Sequence[float | None]], better: str, found: Findings) -> dict[str, Any]:
    """One figure per run of each arm -> a figure per arm and the paired ratio; all null if one is unknown."""
    known = {arm: [value for value in values[arm] if value is not None and 0 < value < inf] for arm in ARMS}
    if not values["dense"] or any(len(known[arm]) < len(values[arm]) for arm in ARMS):
        return {"dense": None, "sparse": None, "ratio": None, "verdict": None}
    pairs = list(zip(known["dense"], known["sparse"], strict=True))
    ratio = paired_ratio(pairs, found.experiment.seed)
    # One pair has no interval: whatever it shows may be chance.
    word = "unclear" if ratio.low is None else verdict(ratio.point, better, ratio.low, ratio.high)
    figures = {arm: exp(fmean(log(value) for value in known[arm])) for arm in ARMS}
    return {**figures, "ratio": asdict(ratio), "verdict": word}


def _runs_of(runs: Sequence[ArmRun], arm: str) -> list[ArmRun]:
    """In the order of the rounds, so that the arms' runs pair up."""
    return sorted((each for each in runs if each.arm == arm), key=lambda each: each.round)


def _memory(arms: Mapping[str, ArmFacts]) -> dict[str, Any]:
    states = {name: arms[name].after for name in ARMS}
    held = {name: asdict(state.memory) if state else None for name, state in states.items()}
    weights = {name: _quotient(held, name) for name in ("weight_bytes", "linear_bytes")}
    # A peak varies by chance from start to start, and one start is all there is: no verdict.
    peak = _quotient(held, "device_peak_bytes") | {"verdict": None}
    return {**held, **weights, "device_peak_bytes": peak}


def _quotient(held: Mapping[str, dict[str, Any] | None], name: str) -> dict[str, Any]:
    dense, sparse = ((held[arm] or {}).get(name) for arm in ARMS)
    ratio = sparse / dense if dense and sparse else None
    return {"ratio": ratio, "verdict": verdict(ratio, "lower")}


def _quality(found: Findings) -> dict[str, Any] | None:
    quality = found.quality
    if quality is None:
        return None
    dense, sparse = quality.dense_perplexity, quality.sparse_perplexity
    ratio = sparse / dense if dense and sparse else None
    judged = {"ratio": ratio, "verdict": verdict(ratio, "lower")}
    return asdict(quality) | {"perplexity": judged}


def _cost(found: Findings) -> dict[str, Any] | None:
    """Null in an open loop, which offers both arms the same rate and so says nothing about capacity."""
    if found.experiment.rate:
        return None
    kinds = [field.name for field in fields(Cost)]
    return {"price": _price(found.price), **{kind: _cost_kind(found, kind) for kind in kinds}}


def _cost_kind(found: Findings, kind: str) -> dict[str, Any]:
    values = {arm: [_cost_of(each, kind, found.price) for each in _runs_of(found.runs, arm)] for arm in ARMS}
    compared = _compared(values, "lower", found)
    ratio = compared["ratio"]
    compared["dense_over_sparse"] = ratio and _inverse(ratio)
    # The ratio does not depend on the price; the figures do.
    return compared if found.price else compared | {"dense": None, "sparse": None}


def _cost_of(each: ArmRun, kind: str, price: Price | None) -> float | None:
    output, total = each.run.summary.output_tokens_per_s, each.run.summary.total_tokens_per_s
    if not output or not total:
        return None
    figure: float = getattr(cost(price.usd_per_hour if price else 1.0, total - output, output), kind)
    return figure


def _inverse(ratio: Mapping[str, Any]) -> dict[str, Any]:
    low, high = (None if ratio[end] is None else 1 / ratio[end] for end in ("high", "low"))
    return {"point": 1 / ratio["point"], "low": low, "high": high, "n": ratio["n"]}


def _price(price: Price | None) -> dict[str, Any] | None:
    return asdict(price) | {"as_of": price.as_of.isoformat() if price.as_of else None} if price else None


def _baselines(dense: ArmFacts) -> dict[str, Any]:
    """Two dense baselines belong in every comparison; what was served is one of them."""
    return {"served": dict(dense.after.kernels) if dense.after else None, "best_dense": None}


def _samples(found: Findings) -> dict[str, Any]:
    return {"question": found.question, **{arm: found.arms[arm].answer for arm in ARMS}}


def _notes(found: Findings) -> list[str]:
    notes = [
        "Answers are forced to their planned length, so both models do the same work; how long each would "
        "answer by itself, and so its cost per answer, is not measured here.",
        "The dense arm is the dense model as this server runs it. The fastest dense that could be made "
        "(best dense) is not measured.",
    ]
    if found.placement is None:
        notes.append("The servers were running already; the machine named here is that of the client.")
    elif found.placement.server_cpus is None:
        notes.append("Too few CPUs to pin server and client apart: they share them.")
    if found.experiment.rate:
        notes.append("An open loop offers both the same rate; cost needs a closed loop (--concurrency).")
    elif found.price is None:
        notes.append("No price is known for this machine; give --price-per-hour. The cost ratio needs none.")
    warning = found.price.warning(found.started.date()) if found.price else None
    return [*notes, f"Attention: {warning}."] if warning else notes


def _run(each: ArmRun) -> dict[str, Any]:
    return {"arm": each.arm, "round": each.round, **single.document(each.run, with_records=True)}
