"""What the arms that were measured say of 2:4 at this load: whether a dense one beats it."""

from collections.abc import Iterator, Mapping
from typing import Any

from twofour.bench.comparison.costs import cost_of
from twofour.bench.comparison.experiment import Findings
from twofour.bench.comparison.figures import METRICS, Values, mean, of_metric, of_runs, paired
from twofour.bench.comparison.named import MIXED
from twofour.bench.report import rows

PRUNED = ("sparse", MIXED)  # kinds of arms with 2:4 linears
UNCLEAR = ("buys nothing clear", ", or measure more rounds")
Losses = Mapping[str, Mapping[str, Any] | None]  # by arm; None: not measured


def advice(found: Findings, kinds: Mapping[str, str], losses: Losses) -> list[str]:
    """A sentence for each arm with 2:4 linears: against the cheapest dense arm that loses less."""
    values, what = _decisive(found)
    return [
        sentence
        for name, kind in kinds.items()
        if kind in PRUNED and (rival := _rival(name, kinds, values, losses))
        for sentence in _against(rival, name, values, losses, what, found.experiment.seed)
    ]


def _decisive(found: Findings) -> tuple[Values, str]:
    """What decides, of every round, less of it being better; and how two arms are compared by it."""
    if found.experiment.primary == "cost":
        return of_runs(found, lambda run: cost_of(run, "blended", None)), "a token by {} costs {} one by {}"
    return of_metric(found, METRICS[found.experiment.primary])[0], "an answer by {} takes {} one by {}"


def _rival(name: str, kinds: Mapping[str, str], values: Values, losses: Losses) -> str | None:
    dense = [other for other, kind in kinds.items() if kind == "dense" and values[other]]
    lighter = [other for other in dense if _loses_less(losses.get(other), losses.get(name))]
    return min(lighter, key=lambda other: mean(values[other]) or 0.0, default=None) if values[name] else None


def _loses_less(one: Mapping[str, Any] | None, other: Mapping[str, Any] | None) -> bool:
    """Dense is taken to lose less than 2:4 where that was not measured."""
    if not one or not other or one["kl"] is None or other["kl"] is None:
        return True
    return bool(one["kl"] < other["kl"])


def _against(rival: str, name: str, values: Values, losses: Losses, what: str, seed: int) -> Iterator[str]:
    compared = paired(values[rival], values[name], "lower", seed)
    ratio = compared["ratio"]
    times = f"{rows.times(ratio['point'])} {rows.interval(ratio['low'], ratio['high'])}".strip()
    said = f"{what.format(name, times, rival)}{_lost(rival, name, losses)}"
    if compared["verdict"] == "better":
        yield f"2:4 pays at this load: {said}. No arm of dense that loses less is cheaper than {rival}."
    else:
        pays, more = ("does not pay", "") if compared["verdict"] == "worse" else UNCLEAR
        yield f"2:4 {pays} at this load: {said}. Take {rival}{more}."


def _lost(rival: str, name: str, losses: Losses) -> str:
    two = [(losses.get(each) or {}).get("kl") for each in (name, rival)]
    if None in two:
        return ""
    return f", and loses {two[0]:.3f} nats per token against {two[1]:.3f}"
