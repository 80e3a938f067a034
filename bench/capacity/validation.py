"""How wrong predictions were: runs that were measured, beside what a profile says of them.

Two questions are kept apart. *Matched*: the very requests of the run are simulated, so what is missed is the model's
fault. *Forecast*: requests like them are drawn anew, as for a plan, so luck is in it, too. Each is asked in several
worlds, of which each has its own draw of the profile's coefficients and its own seed; their median is the prediction,
and where one more run lies in 90 of 100 cases is its interval.

Measured and simulated records pass through the same `metrics.summarise`, over all requests of the run from its start to
its end: what the client's table says of the steady window may differ a little.
"""

import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice, repeat
from statistics import fmean, median
from typing import Any

from twofour.bench.capacity import reach, simulate
from twofour.bench.capacity.profile import Profile, Replica
from twofour.bench.capacity.simulate import Simulated
from twofour.bench.capacity.uncertainty import WORLDS, interval
from twofour.bench.load import arrivals, metrics
from twofour.bench.load.records import Record, Request
from twofour.bench.load.run import Run
from twofour.bench.load.workload import Schedule
from twofour.prune.errors import InputError

KIND = "twofour.bench.validation"
SCHEMA_VERSION = 1
PERCENTS = ("p50", "p95", "p99")
_UNKNOWN = ("turns", "shared_prefix", "keep_shared")  # of a load: its run does not say which prompts begin alike


@dataclass(frozen=True)
class Foretold:
    """One prediction: the median of its worlds, and where 90 % lie."""

    value: float | None
    low: float | None
    high: float | None

    def error(self, measured: float | None) -> float | None:
        return None if self.value is None or not measured else self.value / measured - 1

    def holds(self, measured: float | None) -> bool | None:
        if measured is None or self.low is None or self.high is None:
            return None
        return self.low <= measured <= self.high


@dataclass(frozen=True)
class Figure:
    name: str
    measured: float | None
    matched: Foretold
    forecast: Foretold | None  # None: times of a trace are not drawn anew

    def as_dict(self) -> dict[str, Any]:
        told = {"name": self.name, "measured": self.measured, "matched": self._told(self.matched)}
        return told | {"forecast": self.forecast and self._told(self.forecast)}

    def _told(self, found: Foretold) -> dict[str, Any]:
        return asdict(found) | {"error": found.error(self.measured), "holds": found.holds(self.measured)}


@dataclass(frozen=True)
class Validated:
    """One run. beyond: what it asked of the server that the profile has not seen. utilisation: of an open loop."""

    name: str
    requests: int
    rate: float | None
    concurrency: int | None
    utilisation: float | None
    preemptions: int
    beyond: Sequence[str]
    valid: bool  # the run's gates
    figures: Sequence[Figure]


def validate(profile: Profile, run: Run, name: str, worlds: int = WORLDS) -> Validated:
    """Raises InputError for a run whose requests its document does not tell."""
    asked = as_asked(run)
    open_loop = asked.concurrency is None
    matched = foretell(profile, [asked] * worlds)
    drawn = foretell(profile, [fresh(asked, n) for n in range(worlds)]) if _is_process(asked) else None
    truth = figures([record for record in run.records if record.error is None], run.started_at, open_loop)
    simulated = simulate.run(asked, profile.replica)
    return Validated(
        name=name,
        requests=len(asked.requests),
        rate=_rate(asked) if open_loop else None,
        concurrency=asked.concurrency,
        utilisation=utilisation(profile.replica, asked) if open_loop else None,
        preemptions=simulated.usage[0].preemptions,
        beyond=list(reach.beyond(profile, simulated.usage)),
        valid=run.valid,
        figures=[Figure(name, truth[name], matched[name], drawn[name] if drawn else None) for name in truth],
    )


def foretell(profile: Profile, worlds: Sequence[Schedule]) -> dict[str, Foretold]:
    """Of a run, whose requests are these in each world."""
    found = [_simulated(profile, each, number) for number, each in enumerate(worlds)]
    return _over([figures(each.records, 0.0, worlds[0].concurrency is None) for each in found])


def as_asked(run: Run) -> Schedule:
    """What the server got: the requests that ended well, when they were due, as long as it counted."""
    told = [name for name in _UNKNOWN if run.schedule.made_of.get(name)]
    if told and not any(request.prompt for request in run.schedule.requests):
        raise InputError(
            f"the run does not say which of its prompts begin alike ({told[0]}); measure it with --url, which knows"
        )
    planned = {request.index: request for request in run.schedule.requests}
    good = [record for record in run.records if record.error is None]
    if not good:
        raise InputError("no request of the run ended well, so nothing can be compared; measure it again")
    return replace(run.schedule, requests=[_asked(planned[each.index], each, run.started_at) for each in good])


def fresh(schedule: Schedule, seed: int) -> Schedule:
    """Others like these: lengths drawn from theirs, at arrivals of the same process."""
    draw, of = random.Random(f"{seed}/fresh"), schedule.requests
    open_loop = schedule.concurrency is None
    times = arrivals.at_rate(arrivals.units(_shape(schedule), seed + 1_000_000), _rate(schedule))
    at = islice(times if open_loop else repeat(0.0), len(of))
    return replace(schedule, requests=[_renewed(draw.choice(of), i, at_s) for i, at_s in enumerate(at)])


def utilisation(replica: Replica, schedule: Schedule) -> float | None:
    """How much of what one replica gets done, when there is always more to do, is asked for."""
    at_once = replace(schedule, requests=simulate.always_more(schedule.requests))
    served = simulate.served_per_s(simulate.simulate(at_once, replica))
    return None if served is None else _rate(schedule) / served


def figures(records: Sequence[Record], started_at: float, open_loop: bool) -> dict[str, float | None]:
    found = metrics.summarise(records, started_at, metrics.whole_window(records))
    kinds = {"ttft": found.ttft_sched if open_loop else found.ttft, "itl": found.itl_gap}
    kinds |= {"tpot": found.tpot, "e2e": found.e2e}
    named = {f"{kind}_{percent}": getattr(each, percent) for kind, each in kinds.items() for percent in PERCENTS}
    return named | {"output_tokens_per_s": found.output_tokens_per_s}


def document(profile: Profile, found: Sequence[Validated]) -> dict[str, Any]:
    """As JSON. Only runs that are valid and inside of what was measured count in the sums."""
    runs = [asdict(each) | {"figures": [figure.as_dict() for figure in each.figures]} for each in found]
    counted = [each for each in found if each.valid and not each.beyond]
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "profile": {"name": profile.name, "model": profile.model, "source": profile.source, "started": profile.started},
        "runs": runs,
        "counted": len(counted),
        "errors": {
            how: {name: _errors(counted, how, name) for name in _names(found)} for how in ("matched", "forecast")
        },
        "valid": profile.valid and all(each.valid for each in found),
    }


def _errors(found: Sequence[Validated], how: str, name: str) -> dict[str, float | int | None]:
    """Of one figure over all runs: how wrong in the mean and at worst, and how many lie within the interval."""
    every = [(figure, getattr(figure, how)) for each in found for figure in each.figures if figure.name == name]
    told = [(each.error(figure.measured), each.holds(figure.measured)) for figure, each in every if each]
    errors = [abs(error) for error, _ in told if error is not None]
    return {
        "runs": len(errors),
        "mean": fmean(errors) if errors else None,
        "max": max(errors, default=None),
        "held": sum(held is True for _, held in told),
    }


def _names(found: Sequence[Validated]) -> list[str]:
    return list(dict.fromkeys(figure.name for each in found for figure in each.figures))


def _simulated(profile: Profile, schedule: Schedule, world: int) -> Simulated:
    steps = profile.draws[world % len(profile.draws)] if profile.draws else profile.replica.steps
    return simulate.run(schedule, replace(profile.replica, steps=steps), seed=world)


def _over(worlds: Sequence[dict[str, float | None]]) -> dict[str, Foretold]:
    return {name: _foretold([each[name] for each in worlds]) for name in worlds[0]}


def _foretold(values: Sequence[float | None]) -> Foretold:
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return Foretold(None, None, None)
    return Foretold(median(known), *interval(known))


def _asked(request: Request, record: Record, started_at: float) -> Request:
    at_s = record.scheduled_at - started_at if request.after is None else request.at_s
    prompt, output = record.prompt_tokens or request.prompt_tokens, record.output_tokens or request.output_tokens
    return replace(request, at_s=at_s, prompt_tokens=prompt, output_tokens=output)


def _renewed(request: Request, index: int, at_s: float) -> Request:
    return Request(index, at_s, "", request.prompt_tokens, request.output_tokens)


def _is_process(schedule: Schedule) -> bool:
    """Whether arrivals can be drawn anew: not those of a trace, of a ramp, or of sessions."""
    return not schedule.changes and not any(schedule.made_of.get(name) for name in _UNKNOWN)


def _rate(schedule: Schedule) -> float:
    """Of requests, as it was asked for; of a trace, a ramp or sessions, as they came on average."""
    asked, last = schedule.made_of.get("rate"), max(request.at_s for request in schedule.requests)
    if asked and not schedule.changes and not schedule.made_of.get("turns"):
        return float(asked)
    return len(schedule.requests) / last if last else 1.0


def _shape(schedule: Schedule) -> float | None:
    """Of the gaps between arrivals, as `Rate.shape`."""
    said = str(schedule.made_of.get("arrivals") or "gamma:1")
    return float(said.partition(":")[2]) if said.startswith("gamma:") else None
