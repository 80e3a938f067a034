"""The report as one JSON document, made from the findings by one pure function. Unknown is null.

What a figure is, `figures` says. A percentile for which a round alone has too few requests is that of all rounds
`pooled`, without an interval. Every ratio is 2:4 over dense: over the best dense where it is known, and under
`to_torch_dense` over torch dense. An arm that did not run has null figures. Verdicts are by `corrected` chances (Holm):
what decides is one family, all other figures the other.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from twofour.bench.comparison import costs
from twofour.bench.comparison.experiment import ArmFacts, Findings
from twofour.bench.comparison.figures import (
    METRICS,
    Metric,
    Values,
    correct,
    gates,
    kernels,
    known,
    mean,
    of_metric,
    of_runs,
    paired,
    quotient,
    runs_of,
)
from twofour.bench.comparison.notes import notes
from twofour.bench.comparison.views import kept, with_costs
from twofour.bench.load import run as single
from twofour.bench.load.endpoint import prefix_hit_share
from twofour.bench.money.cost import Price
from twofour.bench.report.arms import ARMS
from twofour.bench.turns import order

KIND = "twofour.bench.compare"
SCHEMA_VERSION = 2  # 1 knew no torch_dense; what it has is read as before


def document(found: Findings) -> dict[str, Any]:
    baselines, primary = _baselines(found), found.experiment.primary
    metrics = {name: _metric(found, metric) for name, metric in METRICS.items()}
    cost = _cost(found)
    _correct(metrics, cost, primary)
    decides = metrics[primary] if cost is None else cost["blended"]
    paid_back = costs.paid_back(found, "sparse", "dense", cost and cost["blended"]["ratio"])
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        **circumstances(found),
        "arms": {name: arm_facts(arm) for name, arm in found.arms.items()},
        "valid": is_valid(found),
        "cut_off": found.cut_off,
        "gates": gates(found.runs),
        "primary": primary,
        "metrics": metrics,
        "memory": _memory(found.arms),
        "quality": _quality(found),
        "cost": cost,
        "step_cost": {arm: costs.by_steps(found, arm) for arm in found.arms},
        "payback": paid_back,
        "views": [kept(with_costs(view, found.price)) for view in found.views],
        "baselines": baselines,
        "samples": _samples(found),
        "notes": notes(found, baselines, decides["verdict"], paid_back),
        "runs": runs(found),
    }


def circumstances(found: Findings) -> dict[str, Any]:
    """When, by what command, on which machine and under which load it was measured."""
    return {
        "started": found.started.isoformat(timespec="seconds"),
        "command": list(found.command),
        "versions": dict(found.versions),
        "hardware": found.hardware.as_dict(),
        "load": _load(found),
        "placement": asdict(found.placement) if found.placement else None,
        "random_weights": found.random_weights,
    }


def is_valid(found: Findings) -> bool:
    """No run failed a gate, and all rounds are there."""
    whole = not found.cut_off and all(view["valid"] for view in found.views)
    return whole and all(each.run.valid for each in found.runs)


def runs(found: Findings) -> list[dict[str, Any]]:
    """All runs with all their requests."""
    return [
        {"arm": each.arm, "round": each.round, **single.document(each.run, with_records=True)} for each in found.runs
    ]


def priced(price: Price | None) -> dict[str, Any] | None:
    """A price as plain data."""
    return asdict(price) | {"as_of": price.as_of.isoformat() if price.as_of else None} if price else None


def _load(found: Findings) -> dict[str, Any]:
    experiment = found.experiment
    lengths = {"prompt_tokens": str(experiment.prompt_tokens), "output_tokens": str(experiment.output_tokens)}
    orders = [order(list(found.arms), round_) for round_ in range(experiment.rounds)]
    slo = str(experiment.slo) if experiment.slo else None
    return asdict(experiment) | lengths | {"slo": slo, "order": orders, "summary": str(experiment)}


def arm_facts(arm: ArmFacts) -> dict[str, Any]:
    return {
        "given": arm.given,
        "model": arm.model,
        "command": list(arm.command) if arm.command else None,
        "kernels": kernels(arm),
        "prefix_hit_share": prefix_hit_share(arm.before, arm.after),
    }


def _metric(found: Findings, metric: Metric) -> dict[str, Any]:
    values, pooled = of_metric(found, metric)
    return {"unit": metric.unit, "better": metric.better, "pooled": pooled} | _compared(found, values, metric.better)


def _compared(found: Findings, values: Values, better: str) -> dict[str, Any]:
    """A figure per arm and the paired ratios of 2:4; null where one of the runs lacks it."""
    seed = found.experiment.seed
    return {
        **{arm: mean(values.get(arm)) for arm in ARMS},
        **paired(values["dense"], values["sparse"], better, seed),
        "to_torch_dense": paired(values["torch_dense"], values["sparse"], better, seed)
        if "torch_dense" in values
        else None,
    }


def _correct(metrics: Mapping[str, Any], cost: Mapping[str, Any] | None, primary: str) -> None:
    """Verdicts by how many ratios are looked at: what decides is one family, all else the other."""
    named = {name: (metric, metric["better"]) for name, metric in metrics.items()}
    named |= {f"cost {kind}": (figure, "lower") for kind, figure in (cost or {}).items() if kind != "price"}
    decides = "cost blended" if primary == "cost" else primary
    for family in ([decides], [name for name in named if name != decides]):
        against = [(each, named[name][1]) for name in family for each in (named[name][0], named[name][0][_TORCH])]
        correct([(figure, better) for figure, better in against if figure])


_TORCH = "to_torch_dense"


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
    return quotient(dense, sparse) | {"to_torch_dense": quotient(torch_dense, sparse)}


def _quality(found: Findings) -> dict[str, Any] | None:
    quality = found.quality
    if quality is None:
        return None
    return asdict(quality) | {"perplexity": quotient(quality.dense_perplexity, quality.sparse_perplexity)}


def _cost(found: Findings) -> dict[str, Any] | None:
    """Null in an open loop, which offers all arms the same rate and so says nothing about capacity."""
    if found.experiment.rate:
        return None
    return {"price": priced(found.price), **{kind: _cost_kind(found, kind) for kind in costs.kinds(found)}}


def _cost_kind(found: Findings, kind: str) -> dict[str, Any]:
    compared = _compared(found, of_runs(found, lambda run: costs.cost_of(run, kind, found.price)), "lower")
    ratio = compared["ratio"]
    compared["dense_over_sparse"] = ratio and _inverse(ratio)
    # The ratio does not depend on the price; the figures do.
    return compared if found.price else compared | dict.fromkeys(ARMS)


def _inverse(ratio: Mapping[str, Any]) -> dict[str, Any]:
    low, high = (None if ratio[end] is None else 1 / ratio[end] for end in ("high", "low"))
    return {"point": 1 / ratio["point"], "low": low, "high": high, "n": ratio["n"]}


def _baselines(found: Findings) -> dict[str, Any]:
    """The two dense baselines: which kernels each ran, and whether the best is no slower than torch's."""
    if "torch_dense" not in found.arms:
        return {"torch_dense": None, "best_dense": None}
    torch_dense, best_dense = (
        known([each.run.summary.tpot.mean for each in runs_of(found.runs, arm)]) for arm in ("torch_dense", "dense")
    )
    return {
        "torch_dense": {"kernels": kernels(found.arms["torch_dense"])},
        "best_dense": {
            "kernels": kernels(found.arms["dense"]),
            "tpot_to_torch_dense": paired(torch_dense, best_dense, "lower", found.experiment.seed),
        },
    }


def _samples(found: Findings) -> dict[str, Any]:
    return {"question": found.question, **{name: arm.answer for name, arm in found.arms.items()}}
