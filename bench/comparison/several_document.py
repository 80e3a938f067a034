"""The report of several arms as one JSON document, made from the findings by one pure function. Unknown is null.

What a figure is, `figures` says. Every ratio is an arm over the first. As many ratios are looked at, verdicts are by
`corrected` chances (Holm): one family is what decides, of all arms, the other all other figures. An arm without whole
rounds has null figures. `fronts` names, for each cost, the arms that no other beats in cost and loss together.
"""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from twofour.bench.comparison import costs
from twofour.bench.comparison.advice import advice
from twofour.bench.comparison.document import arm_facts, circumstances, is_valid, priced, runs
from twofour.bench.comparison.experiment import ArmFacts, Findings
from twofour.bench.comparison.figures import (
    METRICS,
    Values,
    correct,
    gates,
    mean,
    of_metric,
    of_runs,
    paired,
    quotient,
)
from twofour.bench.comparison.named import NamedArm
from twofour.bench.comparison.notes import several_notes
from twofour.bench.comparison.quality import Quality
from twofour.bench.comparison.views import kept, with_costs
from twofour.bench.report.arms import SEVERAL
from twofour.bench.report.offers import fronts

SCHEMA_VERSION = 1
NOTHING_LOST = {"perplexity_ratio": 1.0, "kl": 0.0, "agreement": 1.0}

Figures = dict[str, dict[str, Any]]  # by arm


def document(found: Findings, arms: Mapping[str, NamedArm], qualities: Mapping[str, Quality]) -> dict[str, Any]:
    metrics, cost = _metrics(found), _cost(found)
    primary = found.experiment.primary
    _correct(metrics, cost, primary)
    paid_back = {arm: _paid_back(found, arm, cost) for arm in found.arms}
    losses = _losses(list(found.arms), qualities)
    whole = {
        "kind": SEVERAL,
        "schema_version": SCHEMA_VERSION,
        **circumstances(found),
        "arms": {name: _arm(arm, arms[name]) for name, arm in found.arms.items()},
        "valid": is_valid(found),
        "cut_off": found.cut_off,
        "gates": gates(found.runs),
        "primary": primary,
        "metrics": metrics,
        "bytes": _bytes(found.arms),
        "quality": losses,
        "quality_of": _measured_on(qualities),
        "cost": cost,
        "step_cost": {arm: costs.by_steps(found, arm) for arm in found.arms},
        "payback": paid_back,
        "views": [kept(with_costs(view, found.price)) for view in found.views],
        "price": priced(found.price),
        "advice": advice(found, {name: arm.kind for name, arm in arms.items()}, losses),
        "question": found.question,
        "notes": several_notes(found, paid_back),
        "runs": runs(found),
    }
    return whole | {"fronts": fronts(whole)}


def _arm(facts: ArmFacts, arm: NamedArm) -> dict[str, Any]:
    memory = asdict(facts.after.memory) if facts.after else None
    own = {"kind": arm.kind, "flags": list(arm.flags), "memory": memory, "answer": facts.answer}
    return arm_facts(facts) | own


def _metrics(found: Findings) -> dict[str, Any]:
    metrics = dict[str, Any]()
    for name, metric in METRICS.items():
        values, pooled = of_metric(found, metric)
        figures = _against_first(values, metric.better, found.experiment.seed)
        metrics[name] = {"unit": metric.unit, "better": metric.better, "pooled": pooled, "arms": figures}
    return metrics


def _cost(found: Findings) -> dict[str, Figures] | None:
    """Null in an open loop, which offers all arms the same rate and so says nothing about capacity."""
    return None if found.experiment.rate else {kind: _cost_kind(found, kind) for kind in costs.kinds(found)}


def _cost_kind(found: Findings, kind: str) -> Figures:
    values = of_runs(found, lambda run: costs.cost_of(run, kind, found.price))
    figures = _against_first(values, "lower", found.experiment.seed)
    # The ratio does not depend on the price; the figures do.
    return figures if found.price else {name: figure | {"value": None} for name, figure in figures.items()}


def _paid_back(found: Findings, arm: str, cost: Mapping[str, Figures] | None) -> dict[str, Any] | None:
    """Against the first arm; null for arms that were not pruned."""
    return costs.paid_back(found, arm, next(iter(found.arms)), cost["blended"][arm]["ratio"] if cost else None)


def _against_first(values: Values, better: str, seed: int) -> Figures:
    base = next(iter(values.values()))
    return {
        arm: {"value": mean(each)} | paired(base if number else None, each, better, seed)
        for number, (arm, each) in enumerate(values.items())
    }


def _correct(metrics: Mapping[str, Any], cost: Mapping[str, Figures] | None, primary: str) -> None:
    """Both families: what decides, over all arms, and all else."""
    named = {name: (metric["arms"], metric["better"]) for name, metric in metrics.items()}
    named |= {f"cost {kind}": (figures, "lower") for kind, figures in (cost or {}).items()}
    decides = "cost blended" if primary == "cost" else primary
    for family in ([decides], [name for name in named if name != decides]):
        correct([(figure, named[name][1]) for name in family for figure in named[name][0].values()])


def _bytes(arms: Mapping[str, ArmFacts]) -> dict[str, Figures]:
    """Of all weights, and of the decoder linears among them."""
    states = {name: asdict(arm.after.memory) if arm.after else {} for name, arm in arms.items()}
    return {kind: _bytes_kind({name: state.get(kind) for name, state in states.items()}) for kind in _HELD}


_HELD = ("weight_bytes", "linear_bytes")


def _bytes_kind(held: Mapping[str, int | None]) -> Figures:
    base = next(iter(held.values()))
    return {name: {"value": value} | quotient(base, value) for name, value in held.items()}


def _losses(names: list[str], qualities: Mapping[str, Quality]) -> dict[str, Any]:
    """What each arm loses against the first, which loses nothing by definition; null: not measured."""
    first = next(iter(qualities.values()), None)
    own = {
        "perplexity": first.dense_perplexity if first else None,
        "perplexity_ratio": 1.0,
        "kl": 0.0,
        "agreement": 1.0,
    }
    return {
        name: own if number == 0 else _loss(qualities[name]) if name in qualities else None
        for number, name in enumerate(names)
    }


def _loss(quality: Quality) -> dict[str, Any]:
    ratio = quotient(quality.dense_perplexity, quality.sparse_perplexity)["ratio"]
    lost = {"kl": quality.kl, "agreement": quality.agreement}
    return {"perplexity": quality.sparse_perplexity, "perplexity_ratio": ratio} | lost


def _measured_on(qualities: Mapping[str, Quality]) -> dict[str, Any] | None:
    if not qualities:
        return None
    any_ = next(iter(qualities.values()))
    sources = {name: quality.source for name, quality in qualities.items()}
    return {"text": any_.text, "tokens": any_.tokens, "sources": sources}
