"""The report as one JSON document, made from the findings by one pure function. Unknown is null.

An arm's figure is the geometric mean over the rounds of that figure of each run; so the ratio of two figures
is the geometric mean of the paired ratios, and the interval belongs to exactly the ratio that one reads off.
A percentile for which a round alone has too few requests is that of all rounds `pooled`, without an interval.
Every ratio is 2:4 over dense: over the best dense where it is known, and under `to_torch_dense` over torch dense.
An arm that did not run has null figures.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from math import exp, inf, log
from statistics import fmean
from typing import Any

from twofour.bench.comparison.experiment import ArmFacts, ArmRun, Findings
from twofour.bench.comparison.notes import notes
from twofour.bench.load import run as single
from twofour.bench.load.endpoint import prefix_hit_share
from twofour.bench.load.metrics import latencies, steady, token_counts
from twofour.bench.money.cost import Cost, Price, cost
from twofour.bench.report.arms import ARMS
from twofour.bench.stats import paired_ratio
from twofour.bench.turns import order

KIND = "twofour.bench.compare"
SCHEMA_VERSION = 2  # 1 knew no torch_dense; what it has is read as before
SAME_WITHIN = 0.005  # for what has no interval because it does not vary


@dataclass(frozen=True)
class Metric:
    quantity: str  # of a Summary
    statistic: str | None  # of a Distribution; None: the quantity is a number
    unit: str
    better: str  # `lower` or `higher`

    def of(self, quantities: Mapping[str, Any]) -> float | None:
        found = quantities[self.quantity]
        value: float | None = getattr(found, self.statistic) if self.statistic else found
        return value

    def measured(self, quantities: Mapping[str, Any]) -> bool:
        """Whether there are values at all, even if too few."""
        return self.statistic is not None and quantities[self.quantity].n > 0


METRICS = {
    "ttft_p50": Metric("ttft", "p50", "s", "lower"),
    "ttft_p95": Metric("ttft", "p95", "s", "lower"),
    "ttft_sched_p50": Metric("ttft_sched", "p50", "s", "lower"),
    "tpot_mean": Metric("tpot", "mean", "s", "lower"),
    "itl_gap_p50": Metric("itl_gap", "p50", "s", "lower"),
    "itl_gap_p95": Metric("itl_gap", "p95", "s", "lower"),
    "e2e_p50": Metric("e2e", "p50", "s", "lower"),
    "output_tokens_per_s": Metric("output_tokens_per_s", None, "tokens/s", "higher"),
    "total_tokens_per_s": Metric("total_tokens_per_s", None, "tokens/s", "higher"),
    "requests_per_s": Metric("requests_per_s", None, "requests/s", "higher"),
}


def document(found: Findings) -> dict[str, Any]:
    baselines = _baselines(found)
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "started": found.started.isoformat(timespec="seconds"),
        "command": list(found.command),
        "versions": dict(found.versions),
        "hardware": found.hardware.as_dict(),
        "load": _load(found),
        "placement": asdict(found.placement) if found.placement else None,
        "random_weights": found.random_weights,
        "arms": {name: _arm(arm) for name, arm in found.arms.items()},
        "valid": not found.cut_off and all(each.run.valid for each in found.runs),
        "cut_off": found.cut_off,
        "gates": _gates(found.runs),
        "primary": found.experiment.primary,
        "metrics": {name: _metric(found, metric) for name, metric in METRICS.items()},
        "memory": _memory(found.arms),
        "quality": _quality(found),
        "cost": _cost(found),
        "baselines": baselines,
        "samples": _samples(found),
        "notes": notes(found, baselines),
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


def _load(found: Findings) -> dict[str, Any]:
    experiment = found.experiment
    lengths = {"prompt_tokens": str(experiment.prompt_tokens), "output_tokens": str(experiment.output_tokens)}
    orders = [order(list(found.arms), round_) for round_ in range(experiment.rounds)]
    return asdict(experiment) | lengths | {"order": orders, "summary": str(experiment)}


def _arm(arm: ArmFacts) -> dict[str, Any]:
    return {
        "given": arm.given,
        "model": arm.model,
        "command": list(arm.command) if arm.command else None,
        "kernels": _kernels(arm),
        "prefix_hit_share": prefix_hit_share(arm.before, arm.after),
    }


def _gates(runs: Sequence[ArmRun]) -> list[dict[str, Any]]:
    """Each gate at its worst over the runs."""
    by_name: dict[str, list[Any]] = {}
    for each in runs:
        for gate in each.run.gates:
            by_name.setdefault(gate.name, []).append(gate)
    summed = []
    for gates in by_name.values():
        worst = max(gates, key=lambda gate: -inf if gate.value is None else gate.value / (gate.limit or 1.0))
        failed_runs = sum(gate.passed is False for gate in gates)
        summed.append(asdict(worst) | {"passed": worst.passed, "failed_runs": failed_runs, "runs": len(gates)})
    return summed


def _metric(found: Findings, metric: Metric) -> dict[str, Any]:
    summaries = [vars(each.run.summary) for each in found.runs]
    pooled = None in map(metric.of, summaries) and all(map(metric.measured, summaries))
    compared = (
        _pooled(found, metric)
        if pooled
        else _compared(found, lambda each: metric.of(vars(each.run.summary)), metric.better)
    )
    return {"unit": metric.unit, "better": metric.better, "pooled": pooled} | compared


def _pooled(found: Findings, metric: Metric) -> dict[str, Any]:
    values = {arm: _known([metric.of(_together(_runs_of(found.runs, arm)))]) for arm in found.arms}
    seed = found.experiment.seed
    return {
        **{arm: known[0] if (known := values.get(arm)) else None for arm in ARMS},
        **_paired(values["dense"], values["sparse"], metric.better, seed),
        "to_torch_dense": _paired(values["torch_dense"], values["sparse"], metric.better, seed)
        if "torch_dense" in values
        else None,
    }


def _together(runs: Sequence[ArmRun]) -> dict[str, Any]:
    """The latencies of the requests within the windows of all these runs."""
    inside = [record for each in runs for record in steady(each.run.records)]
    return latencies(inside, token_counts([record for record in inside if record.error is None]))


def _compared(found: Findings, of: Callable[[ArmRun], float | None], better: str) -> dict[str, Any]:
    """A figure per arm and the paired ratios of 2:4; null where one of the runs lacks it."""
    values = {arm: _known([of(each) for each in _runs_of(found.runs, arm)]) for arm in found.arms}
    figures = {arm: exp(fmean(map(log, known))) if (known := values.get(arm)) else None for arm in ARMS}
    seed = found.experiment.seed
    to_torch_dense = _paired(values["torch_dense"], values["sparse"], better, seed) if "torch_dense" in values else None
    return {
        **figures,
        **_paired(values["dense"], values["sparse"], better, seed),
        "to_torch_dense": to_torch_dense,
    }


def _known(values: Sequence[float | None]) -> list[float] | None:
    """All of them; None if one is unknown, and so no mean or ratio can be formed."""
    known = [value for value in values if value is not None and 0 < value < inf]
    return known if known and len(known) == len(values) else None


def _paired(base: Sequence[float] | None, of: Sequence[float] | None, better: str, seed: int) -> dict[str, Any]:
    """`of` over `base`, round by round."""
    if base is None or of is None:
        return {"ratio": None, "verdict": None}
    ratio = paired_ratio(list(zip(base, of, strict=True)), seed)
    # One pair has no interval: whatever it shows may be chance.
    word = "unclear" if ratio.low is None else verdict(ratio.point, better, ratio.low, ratio.high)
    return {"ratio": asdict(ratio), "verdict": word}


def _runs_of(runs: Sequence[ArmRun], arm: str) -> list[ArmRun]:
    """In the order of the rounds, so that the arms' runs pair up."""
    return sorted((each for each in runs if each.arm == arm), key=lambda each: each.round)


def _memory(arms: Mapping[str, ArmFacts]) -> dict[str, Any]:
    states = {name: arms[name].after if name in arms else None for name in ARMS}
    held = {name: asdict(state.memory) if state else None for name, state in states.items()}
    quotients = {name: _quotients(held, name) for name in ("weight_bytes", "linear_bytes", "device_peak_bytes")}
    # A peak varies by chance from start to start, and one start is all there is: no verdict.
    for each in (peak := quotients["device_peak_bytes"], peak["to_torch_dense"]):
        each["verdict"] = None
    return {**held, **quotients}


def _quotients(held: Mapping[str, dict[str, Any] | None], name: str) -> dict[str, Any]:
    torch_dense, dense, sparse = ((held[arm] or {}).get(name) for arm in ARMS)
    return _quotient(dense, sparse) | {"to_torch_dense": _quotient(torch_dense, sparse)}


def _quotient(dense: float | None, sparse: float | None) -> dict[str, Any]:
    ratio = sparse / dense if dense and sparse else None
    return {"ratio": ratio, "verdict": verdict(ratio, "lower")}


def _quality(found: Findings) -> dict[str, Any] | None:
    quality = found.quality
    if quality is None:
        return None
    return asdict(quality) | {"perplexity": _quotient(quality.dense_perplexity, quality.sparse_perplexity)}


def _cost(found: Findings) -> dict[str, Any] | None:
    """Null in an open loop, which offers all arms the same rate and so says nothing about capacity."""
    if found.experiment.rate:
        return None
    kinds = [field.name for field in fields(Cost)]
    return {"price": _price(found.price), **{kind: _cost_kind(found, kind) for kind in kinds}}


def _cost_kind(found: Findings, kind: str) -> dict[str, Any]:
    compared = _compared(found, lambda run: _cost_of(run, kind, found.price), "lower")
    ratio = compared["ratio"]
    compared["dense_over_sparse"] = ratio and _inverse(ratio)
    # The ratio does not depend on the price; the figures do.
    return compared if found.price else compared | dict.fromkeys(ARMS)


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


def _baselines(found: Findings) -> dict[str, Any]:
    """The two dense baselines: which kernels each ran, and whether the best is no slower than torch's."""
    if "torch_dense" not in found.arms:
        return {"torch_dense": None, "best_dense": None}
    torch_dense, best_dense = (
        _known([each.run.summary.tpot.mean for each in _runs_of(found.runs, arm)]) for arm in ("torch_dense", "dense")
    )
    return {
        "torch_dense": {"kernels": _kernels(found.arms["torch_dense"])},
        "best_dense": {
            "kernels": _kernels(found.arms["dense"]),
            "tpot_to_torch_dense": _paired(torch_dense, best_dense, "lower", found.experiment.seed),
        },
    }


def _kernels(arm: ArmFacts) -> dict[str, int] | None:
    """Kernel -> linears; null where the server does not say."""
    return dict(arm.after.kernels) or None if arm.after else None


def _samples(found: Findings) -> dict[str, Any]:
    return {"question": found.question, **{name: arm.answer for name, arm in found.arms.items()}}


def _run(each: ArmRun) -> dict[str, Any]:
    return {"arm": each.arm, "round": each.round, **single.document(each.run, with_records=True)}
