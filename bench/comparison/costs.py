"""What tokens and good requests cost on the arms of a comparison, and when a pruning is paid back. Pure.

Without a price, figures are those of a dollar an hour: ratios need none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from twofour.bench.comparison.experiment import ArmRun, Findings
from twofour.bench.comparison.figures import known, mean, runs_of
from twofour.bench.money.attribution import attribute
from twofour.bench.money.cost import Cost, Price, cost
from twofour.bench.money.payback import payback

GOOD_REQUESTS = "good_requests"  # dollars per 1,000 of them; all others are per million tokens


def kinds(found: Findings) -> list[str]:
    return [*(field.name for field in fields(Cost)), *([GOOD_REQUESTS] if found.experiment.slo else [])]


def cost_of(each: ArmRun, kind: str, price: Price | None) -> float | None:
    output, total = each.run.summary.output_tokens_per_s, each.run.summary.total_tokens_per_s
    usd_per_hour = price.usd_per_hour if price else 1.0
    if kind == GOOD_REQUESTS:
        good = each.run.slo.goodput_per_s if each.run.slo else None
        return 1e3 * usd_per_hour / 3600 / good if good else None
    if not output or not total:
        return None
    figure: float = getattr(cost(usd_per_hour, total - output, output), kind)
    return figure


def by_steps(found: Findings, arm: str) -> dict[str, Any] | None:
    """Cost per million input and output tokens by the time that each took of the server's steps; null without a log."""
    runs = runs_of(found.runs, arm)
    split = attribute([step for each in runs for step in each.steps])
    rates = [_rate_of(runs, kind) for kind in ("input", "output")]
    if split is None or None in rates:
        return None
    usd_per_second = found.price.usd_per_hour / 3600 if found.price else None
    shares = (split.share_input, split.share_output)
    dollars = [
        1e6 * usd_per_second * share / (rate or 1.0) if usd_per_second else None
        for share, rate in zip(shares, rates, strict=True)
    ]
    return asdict(split) | {"input": dollars[0], "output": dollars[1]}


def _rate_of(runs: Sequence[ArmRun], kind: str) -> float | None:
    """Input or output tokens a second, the mean over runs."""
    summaries = [each.run.summary for each in runs]
    output = mean(known([each.output_tokens_per_s for each in summaries]))
    total = mean(known([each.total_tokens_per_s for each in summaries]))
    if output is None or total is None or total <= output:
        return None
    return output if kind == "output" else total - output


def paid_back(found: Findings, arm: str, dense: str, ratio: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """After how many tokens the pruning of an arm is paid back; ratio: of what a token costs by it and by dense."""
    minutes = found.arms[arm].pruning_minutes
    rate = mean(known([each.run.summary.total_tokens_per_s for each in runs_of(found.runs, dense)]))
    return asdict(payback(minutes, rate, ratio)) if minutes and rate and ratio else None
