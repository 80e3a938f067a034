"""Figures of arms from their runs, pure: means and paired ratios over rounds, verdicts, gates, cost.

An arm's figure is the geometric mean over the rounds of that figure of each run; so the ratio of two figures is the
geometric mean of the paired ratios, and the interval belongs to exactly the ratio that one reads off.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import exp, inf, log
from statistics import fmean
from typing import Any

from twofour.bench.comparison.experiment import ArmFacts, ArmRun, Findings
from twofour.bench.load.metrics import latencies, steady, token_counts
from twofour.bench.stats import chance, holm, paired_ratio

SURE = 0.05  # chance below which a difference is said to be one
SAME_WITHIN = 0.005  # for what has no interval because it does not vary

Values = Mapping[str, list[float] | None]  # by arm, one for each round; None: one of them is not known


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


def of_runs(found: Findings, of: Callable[[ArmRun], float | None]) -> Values:
    """What every run of every arm gave."""
    return {arm: known([of(each) for each in runs_of(found.runs, arm)]) for arm in found.arms}


def of_metric(found: Findings, metric: Metric) -> tuple[Values, bool]:
    """The same of a metric; and whether rounds had too few requests, so that it is one value of all together."""
    summaries = [vars(each.run.summary) for each in found.runs]
    if None in map(metric.of, summaries) and all(map(metric.measured, summaries)):
        return {arm: known([metric.of(together(runs_of(found.runs, arm)))]) for arm in found.arms}, True
    return of_runs(found, lambda each: metric.of(vars(each.run.summary))), False


def mean(values: Sequence[float] | None) -> float | None:
    """The geometric mean."""
    return exp(fmean(map(log, values))) if values else None


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


def together(runs: Sequence[ArmRun]) -> dict[str, Any]:
    """The latencies of the requests within the windows of all these runs."""
    inside = [record for each in runs for record in steady(each.run.records)]
    return latencies(inside, token_counts([record for record in inside if record.error is None]))


def known(values: Sequence[float | None]) -> list[float] | None:
    """All of them; None if one is unknown, and so no mean or ratio can be formed."""
    known = [value for value in values if value is not None and 0 < value < inf]
    return known if known and len(known) == len(values) else None


def paired(base: Sequence[float] | None, of: Sequence[float] | None, better: str, seed: int) -> dict[str, Any]:
    """`of` over `base`, round by round; `corrected` is what `correct` puts there."""
    if base is None or of is None:
        return {"ratio": None, "verdict": None, "chance": None, "corrected": None}
    pairs = list(zip(base, of, strict=True))
    ratio = paired_ratio(pairs, seed)
    # One pair has no interval: whatever it shows may be chance.
    word = "unclear" if ratio.low is None else verdict(ratio.point, better, ratio.low, ratio.high)
    return {"ratio": asdict(ratio), "verdict": word, "chance": chance(pairs), "corrected": None}


def correct(family: Sequence[tuple[dict[str, Any], str]]) -> None:
    """Put corrected chances, and verdicts by them, into figures that are looked at together, each with its `better`."""
    known = {place: figure["chance"] for place, (figure, _) in enumerate(family) if figure["chance"] is not None}
    for place, corrected in holm(known).items():
        figure, better = family[place]
        figure["corrected"] = corrected
        figure["verdict"] = "unclear" if corrected > SURE else verdict(figure["ratio"]["point"], better)


def runs_of(runs: Sequence[ArmRun], arm: str) -> list[ArmRun]:
    """In the order of the rounds, so that the arms' runs pair up."""
    return sorted((each for each in runs if each.arm == arm), key=lambda each: each.round)


def quotient(dense: float | None, sparse: float | None) -> dict[str, Any]:
    ratio = sparse / dense if dense and sparse else None
    return {"ratio": ratio, "verdict": verdict(ratio, "lower")}


def gates(runs: Sequence[ArmRun]) -> list[dict[str, Any]]:
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


def kernels(arm: ArmFacts) -> dict[str, int] | None:
    """Kernel -> linears; null where the server does not say."""
    return dict(arm.after.kernels) or None if arm.after else None
