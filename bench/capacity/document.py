"""A plan as one JSON document, by one pure function. Unknown is null.

Rates are sessions per second, those of requests where each has one turn. Dollars per million tokens are of all machines
that are paid for, spares too: `at_capacity` where they serve all that keeps the promise, `at_mean` at the mean of the
traffic. Of both, `input` and `output` split the price as sheets do, an output token worth four.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from itertools import permutations
from math import isfinite
from statistics import fmean
from typing import Any

from twofour.bench.capacity import consistent, growth
from twofour.bench.capacity.option import HOURS, Option
from twofour.bench.capacity.plan import Answer, Asked, Fleet
from twofour.bench.capacity.profile import Profile
from twofour.bench.capacity.search import Trial
from twofour.bench.load import metrics
from twofour.bench.money.cost import STALE_AFTER_DAYS, Price, cost
from twofour.bench.stats import Distribution

KIND = "twofour.bench.plan"
SCHEMA_VERSION = 1
SURE = 0.9  # of the worlds: below, it is said
LATENCIES = {"ttft": "ttft_sched", "itl": "itl_gap", "tpot": "tpot", "e2e": "e2e"}  # as promises name them


def document(asked: Asked, answers: Sequence[Answer], today: date | None = None) -> dict[str, Any]:
    """The answer, without what ran it on which machine."""
    made = [_option(asked, answer) for answer in answers]
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "asked": _asked(asked),
        "chosen": chosen(made),
        "warnings": [*_unsure(answers), *_warnings([each.option for each in answers], today or date.today())],
        "options": made,
    }


def chosen(made: Sequence[Mapping[str, Any]]) -> str | None:
    """The cheapest by month; without a price for each, that of the fewest machines. The first of equals.

    Those that keep the promise in nearly all worlds come before those that do so by luck.
    """
    able = [each for each in made if each["machines"] is not None]
    if not able:
        return None
    able = [each for each in able if each["sure"]["holds"] >= SURE] or able
    priced = all(each["price"] for each in able)
    best = min(able, key=lambda each: each["cost"]["usd_per_month"] if priced else each["machines"])
    return str(best["name"])


def _asked(asked: Asked) -> dict[str, Any]:
    prompt, output = asked.demand.lengths(asked.requests, asked.seed)
    load = asked.demand.schedule(asked.demand.peak, asked.requests, asked.seed).made_of
    return {
        "peak": asked.demand.peak,
        "mean": asked.demand.mean,
        "slo": str(asked.promise.slo),
        "router": asked.promise.router,
        "spare": asked.spare,
        "growth_per_month": asked.growth.monthly if asked.growth else None,
        "prompt_tokens": prompt,
        "output_tokens": output,
        "load": dict(load) | {"rate": asked.demand.peak},
        "requests": asked.requests,
        "seed": asked.seed,
    }


def _option(asked: Asked, answer: Answer) -> dict[str, Any]:
    option, fleet = answer.option, answer.fleet
    return {
        "name": option.name,
        "model": option.profile.model,
        "source": option.profile.source,
        "profiled": option.profile.started,
        "fit_error": option.profile.error,
        "quality_loss": option.profile.quality_loss,
        "beyond": list(answer.beyond),
        "price": _price(option.price),
        "replica": {
            "highest_rate": answer.limit.low,
            "missed_at": answer.limit.high,
            "binding": answer.binding,
            "curve": [_point(trial) for trial in answer.world.curve],
        },
        "alone": _terms(answer.alone),
        "replicas": fleet and fleet.replicas,
        "machines": fleet and fleet.replicas + asked.spare,
        **_at_peak(asked, fleet),
        "cost": _cost(asked, answer),
        "growth": _growth(asked, fleet),
    }


def _price(price: Price | None) -> dict[str, Any] | None:
    return asdict(price) | {"as_of": price.as_of and price.as_of.isoformat()} if price else None


def _point(trial: Trial) -> dict[str, Any]:
    return {"rate": trial.rate, "kept": trial.attained.attained, "terms": _terms(trial)}


def _terms(trial: Trial) -> list[dict[str, Any]]:
    terms: list[dict[str, Any]] = trial.attained.as_dict()["terms"]
    return terms


def _at_peak(asked: Asked, fleet: Fleet | None) -> dict[str, Any]:
    if fleet is None:
        return dict.fromkeys(["headroom", "utilisation", "at_peak", "sure"])
    peak, attained = asked.demand.peak, fleet.at_peak.attained
    summary = metrics.summarise(fleet.at_peak.found.records, 0.0)
    return {
        "headroom": fleet.highest / peak - 1,
        "utilisation": peak / fleet.highest,
        "at_peak": {
            "requests": attained.requests,
            "terms": _terms(fleet.at_peak),
            "good_share": attained.good_share and attained.good_share[0],
            "output_tokens_per_s": summary.output_tokens_per_s,
            **_usage(fleet.at_peak),
            **{name: _quantiles(getattr(summary, field)) for name, field in LATENCIES.items()},
        },
        "sure": asdict(fleet.sure),
    }


def _usage(trial: Trial) -> dict[str, Any]:
    """busy: the share of the time that steps take. Of the KV cache, the most of any replica."""
    usage = trial.found.usage
    ends = [record.done_at for record in trial.found.records if record.done_at is not None]
    span = max(ends, default=0.0)
    return {
        "busy": fmean(each.busy_s for each in usage) / span if span else None,
        "most_running": max(each.most_running for each in usage),
        "most_waiting": max(each.most_waiting for each in usage),
        "most_kv_share": max(each.most_kv_share for each in usage),
        "preemptions": sum(each.preemptions for each in usage),
        "cached_prompt_tokens": sum(each.cached_tokens for each in usage),
    }


def _quantiles(values: Distribution) -> dict[str, Any]:
    return {"mean": values.mean, "p50": values.p50, "p95": values.p95, "p99": values.p99}


def _cost(asked: Asked, answer: Answer) -> dict[str, Any] | None:
    price, fleet = answer.option.price, answer.fleet
    if price is None or fleet is None:
        return None
    machines, (prompt, output) = fleet.replicas + asked.spare, asked.demand.lengths(asked.requests, asked.seed)
    turns = asked.demand.turns(asked.requests, asked.seed)
    hourly, good = machines * price.usd_per_hour, fleet.at_peak.attained.good_share
    rates = {"at_capacity": fleet.highest, "at_mean": asked.demand.mean}
    per_million = {name: cost(hourly, rate * turns * prompt, rate * turns * output) for name, rate in rates.items()}
    requests_per_hour = 3600 * asked.demand.mean * turns
    return {
        "usd_per_month": hourly * HOURS,
        **{
            name: {"blended": each.blended, "input": each.split_input, "output": each.split_output}
            for name, each in per_million.items()
        },
        "per_1000_good_requests": 1000 * hourly / (requests_per_hour * good[0]) if good and good[0] else None,
    }


def _growth(asked: Asked, fleet: Fleet | None) -> dict[str, Any] | None:
    if asked.growth is None or fleet is None:
        return None
    lasts = asked.growth.lasts(fleet.highest / asked.demand.peak - 1)
    months = growth.months(asked.growth, asked.demand.peak, fleet.highest, fleet.replicas, asked.spare)
    return {"lasts_months": lasts if lasts is None or isfinite(lasts) else None, "months": list(map(asdict, months))}


def _unsure(answers: Sequence[Answer]) -> list[str]:
    """The fewest that do in one world need not do in others."""
    fleets = {each.option.name: each.fleet.sure for each in answers if each.fleet}
    return [
        *(
            f"{name} keeps the promise in {round(sure.holds * sure.replicas.worlds)} of {sure.replicas.worlds} worlds "
            f"only; {_most(sure.replicas.high)} replicas do in all"
            for name, sure in fleets.items()
            if sure.holds < SURE
        ),
        *(
            f"{sure.refused} requests of the other worlds are longer than {name} takes, and count as failed"
            for name, sure in fleets.items()
            if sure.refused
        ),
    ]


def _most(replicas: float | None) -> str:
    return "more" if replicas is None else f"{replicas:g}"


def _warnings(options: Sequence[Option], today: date) -> list[str]:
    models = sorted({each.profile.model for each in options})
    stated = any(each.profile.quality_loss is not None for each in options)
    ages = {each.name: each.price.age_days(today) for each in options if each.price}
    unpriced = [each.name for each in options if each.price is None]
    return [
        *_contradictions([each.profile for each in options]),
        *(
            [f"the profiles are of different models, {', '.join(models)}, and {_ALIKE[stated]}"]
            if len(models) > 1
            else []
        ),
        *(
            f"the price of {name} is {age} days old; give today's with --price {name}=DOLLARS"
            for name, age in ages.items()
            if age is not None and age > STALE_AFTER_DAYS
        ),
        *(
            [f"no price of {', '.join(unpriced)}: options are compared by machines; give --price NAME=DOLLARS"]
            if unpriced and len(options) > 1
            else []
        ),
    ]


_ALIKE = {
    False: "nothing says that they answer alike",
    True: "a quality loss counts only if it is against the model that it is compared with here",
}


def _contradictions(profiles: Sequence[Profile]) -> list[str]:
    """What cannot be true of dense and 2:4 that were measured on the same hardware."""
    return [
        f"{dense.name} and {sparse.name} contradict each other: {error}"
        for dense, sparse in permutations(profiles, 2)
        if (dense.sparse, sparse.sparse) == (False, True)
        and "estimate" not in (dense.source, sparse.source)
        and (dense.hashes and dense.hashes.hardware) == (sparse.hashes and sparse.hashes.hardware)
        for error in consistent.errors(dense, sparse)
    ]
