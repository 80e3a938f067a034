"""A server is measured and becomes a Profile: loads in turns, each with the steps that it made the engine take."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from time import perf_counter

from twofour.bench.capacity import loads, outside, step_model
from twofour.bench.capacity.loads import ALONE, Shape
from twofour.bench.capacity.profile import Around, EngineLimits, Profile, Replica
from twofour.bench.capacity.server import Server
from twofour.bench.capacity.step_model import Fit, StepModel
from twofour.bench.load import gates, step_log
from twofour.bench.load.endpoint import Endpoint
from twofour.bench.load.records import Record
from twofour.bench.load.run import CutOff, Run, measure
from twofour.bench.load.service import Service
from twofour.bench.load.step_log import Step
from twofour.bench.traffic.traffic import Traffic
from twofour.bench.turns import order
from twofour.prune.progress import Progress, counter

ROUNDS = 2
_LEAST_S = 2.0  # of a visit
# Gates of runs whose queue grows, which the time of a step knows nothing of.
_QUEUES = {"rate_shortfall", "latency_drift"}


@dataclass(frozen=True)
class Visit:
    """steps: by the server's log; None: it keeps none. lost: steps that the log had forgotten."""

    load: str
    run: Run
    steps: Sequence[Step] | None
    lost: int = 0

    @property
    def requests_per_s(self) -> float:
        good = [r for r in self.run.records if r.error is None and r.done_at is not None]
        last = max((r.done_at or 0.0 for r in good), default=0.0)
        return len(good) / (last - self.run.started_at) if good else 0.0


@dataclass(frozen=True)
class Measured:
    """What the visits gave. cut_off: the interrupt that ended them."""

    visits: Sequence[Visit]
    minutes: float
    cut_off: KeyboardInterrupt | None = None


def visits(
    service: Service, server: Server, shape: Shape, minutes: float, most: int | None, progress: Progress
) -> Measured:
    """All loads in two rounds, the second in the reverse order. An interrupt ends them: what there is comes back."""
    clients, begun, done = loads.ladder(server.limits, shape, most), perf_counter(), list[Visit]()
    plan = [(name, round_) for round_ in range(ROUNDS) for name in order(loads.names(clients), round_)]
    step = counter("measuring", len(plan), progress)
    try:
        for i, (name, round_) in enumerate(plan):
            left_s = minutes * 60 - (perf_counter() - begun)
            seconds, rate = max(_LEAST_S, left_s / (len(plan) - i)), max((v.requests_per_s for v in done), default=None)
            asked = replace(shape, seed=shape.seed + round_)
            done.append(_visit(service, name, loads.traffic(name, clients, server.limits, asked, seconds, rate)))
            step(f"round {round_ + 1} of {ROUNDS}, {name}")
    except CutOff as cut_off:
        return Measured([*done, Visit(name, cut_off.run, None)], _minutes(begun), cut_off)
    except KeyboardInterrupt as cut_off:
        return Measured(done, _minutes(begun), cut_off)
    return Measured(done, _minutes(begun))


def _minutes(begun: float) -> float:
    return (perf_counter() - begun) / 60


def _visit(service: Service, name: str, traffic: Traffic) -> Visit:
    endpoint = Endpoint(service.url, service.model, service.access)
    before = step_log.read(endpoint.step_log())
    run = measure(service, traffic.schedule())
    after = step_log.read(endpoint.step_log()) if before else None
    if not (before and after):
        return Visit(name, run, None)
    return Visit(name, run, after.since(before), after.lost_since(before))


def profile(name: str, model: str, server: Server, measured: Measured, from_steps: bool, seed: int = 0) -> Profile:
    """Raises InputError where too little was measured."""
    found = measured.visits
    log = [step for visit in found for step in _steps(visit, server, from_steps)]
    fit = step_model.fit(log, seed)
    failed = sorted({g.name for v in found for g in gates.failed(v.run.gates) if g.name not in _QUEUES})
    return Profile(
        name,
        model,
        Replica(server.limits, fit.steps, _around(found, fit, from_steps, _budget(server.limits)), fit.residuals),
        fit.hull,
        source="steps" if from_steps else "client",
        draws=fit.draws,
        error=fit.error,
        valid=not failed and not measured.cut_off,
        failed=failed,
        sparse=server.sparse,
        weight_bits=server.weight_bits,
        weight_bytes=server.weight_bytes,
        hashes=server.hashes,
        minutes=measured.minutes,
        cut_off=measured.cut_off is not None,
        notes=_notes(found, fit, from_steps),
    )


def _steps(visit: Visit, server: Server, from_steps: bool) -> Sequence[Step]:
    if from_steps:
        return visit.steps or []
    return outside.steps(visit.run.records, _budget(server.limits))


def _budget(limits: EngineLimits) -> int:
    """Tokens of a prompt that are surely computed in one step, if it is alone."""
    return limits.piece or limits.max_num_batched_tokens


def _notes(found: Sequence[Visit], fit: Fit, from_steps: bool) -> list[str]:
    lost = sum(visit.lost for visit in found)
    whole = f"fitted to {fit.count:,} steps" + (" of the engine's log" if from_steps else " seen from outside")
    return [whole, *([f"{lost:,} steps had left the log before they were read"] if lost else [])]


def _around(found: Sequence[Visit], fit: Fit, from_steps: bool, budget: int) -> Around:
    alone = [visit for visit in found if visit.load == ALONE]
    if from_steps:
        waits = [s for visit in alone for s in waited(visit.run.records, visit.steps or [])]
        gaps = [s for visit in found if visit.load != ALONE for s in between(visit.steps or [])]
        return Around(max(0.0, median(waits)) if waits else 0.0, max(0.0, median(gaps)) if gaps else 0.0)
    records = [record for visit in alone for record in visit.run.records]
    return Around(outside.first_s(records, lambda tokens: _prefill_s(fit.steps, tokens, budget)), 0.0)


def _prefill_s(steps: StepModel, tokens: int, budget: int) -> float:
    """Of a prompt that is alone."""
    return steps.seconds(tokens, 0, 0, tokens * (tokens + 1) // 2) + (-(-tokens // budget) - 1) * steps.fixed_s


def between(steps: Sequence[Step]) -> list[float]:
    """From each step to the next. Pauses are among them: where there is work, they are few."""
    return [
        later.started_at - step.started_at - step.seconds
        for step, later in pairwise(steps)
        if step.started_at is not None and later.started_at is not None
    ]


def waited(records: Sequence[Record], steps: Sequence[Step]) -> list[float]:
    """Of requests that were alone, one after the other: the time to the first token without the steps up to it.

    The last steps are the last request's: as many as compute its prompt and its answer. It ends where they do not.
    """
    left, found = list(steps), list[float]()
    for record in reversed(sorted(records, key=lambda r: r.sent_at or 0.0)):
        own = _own(left, record)
        if own is None or record.sent_at is None or not record.chunks:
            break
        left = left[: len(left) - len(own)]
        until_first = own[: len(own) - ((record.output_tokens or 1) - 1)]
        inside = (until_first[-1].started_at or 0.0) - (until_first[0].started_at or 0.0) + until_first[-1].seconds
        found.append(record.chunks[0].at - record.sent_at - inside)
    return found


def _own(steps: list[Step], record: Record) -> list[Step] | None:
    """Those at the end of `steps` that computed this request and nothing else; None: there are none such."""
    if record.error or not record.prompt_tokens or not record.output_tokens:
        return None
    lacking = record.prompt_tokens - (record.cached_tokens or 0) + record.output_tokens - 1
    for count in range(1, len(steps) + 1):
        lacking -= steps[-count].prefill_tokens + steps[-count].decodes
        if lacking <= 0:
            first = steps[-count]
            return steps[-count:] if lacking == 0 and first.prefill_tokens and first.started_at is not None else None
    return None
