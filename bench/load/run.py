"""One load test of one server: warm up, drive, sum up, check."""

import json
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime
from itertools import chain, cycle, repeat
from time import perf_counter
from typing import Any

from twofour.bench.load import client, crew, gaps, gates, metrics, schedule_file, workload
from twofour.bench.load.client import Session
from twofour.bench.load.crew import Crew
from twofour.bench.load.endpoint import Endpoint, State, prefix_hit_share
from twofour.bench.load.gates import Gate
from twofour.bench.load.metrics import Summary
from twofour.bench.load.polling import Looker
from twofour.bench.load.records import TIMES, Message, Record, Request
from twofour.bench.load.server_side import ServerSide
from twofour.bench.load.service import Service
from twofour.bench.load.slo import Attainment
from twofour.bench.load.watch import Watch
from twofour.bench.load.workload import Schedule
from twofour.prune.errors import ServerError
from twofour.prune.progress import Progress, counter, silent

KIND = "twofour.bench.run"
SCHEMA_VERSION = 2  # 1 called it `version`, and knew neither planned lengths nor runs that were cut off
_WARM_UP_AT_ONCE = 4  # in an open loop, which sets no such number


@dataclass(frozen=True)
class Run:
    service: Service
    schedule: Schedule
    nonce: str
    started: datetime  # the wall clock at `started_at`
    started_at: float
    records: Sequence[Record]  # of those requests that were sent
    summary: Summary
    gates: Sequence[Gate]
    cut_off: bool = False  # interrupted: what was measured until then
    over_saturated: bool = False  # ended early, as the schedule allows, for the server did not keep up
    template_tokens: int | None = 0  # that a chat template adds to a prompt
    message_tokens: float | None = 0.0  # and to each message before it
    slo: Attainment | None = None  # where one was asked for
    server: ServerSide | None = None  # None: nothing of it could be seen
    workers: int = 1  # client processes

    @property
    def valid(self) -> bool:
        return not self.cut_off and not self.over_saturated and not gates.failed(self.gates)


class CutOff(KeyboardInterrupt):
    """An interrupt that ended a load, with what was measured until then."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run


def measure(
    service: Service, schedule: Schedule, nonce: str | None = None, progress: Progress = silent, workers: int = 1
) -> Run:
    """Load-test a server that is up. nonce: what no prompt of another run begins with; None: drawn. workers: processes.

    Raises ServerError if the server answers not one request of the warm-up, CutOff if the load is interrupted.
    """
    nonce, lags, limits = nonce or secrets.token_hex(4), list[float](), schedule.limits
    watch = Watch(len(schedule.requests), limits.duration_s, limits.stop_over_saturated, progress)
    cut_off, kept_up = False, True
    endpoint = Endpoint(service.url, service.model, service.access)
    with crew.connected(service, workers) as session:
        warm_up(session, service, schedule, nonce, progress)
        own = own_tokens(session, service, schedule, nonce) if service.api == "chat" else gates.NOTHING_OWN
        jobs, before = client.jobs(service, schedule.requests, nonce), _state(endpoint)
        with Looker(endpoint) as looker:
            looker.begin(served=before is not None)
            pressure, started, started_at = gates.Pressure(), datetime.now(UTC), perf_counter()
            try:
                kept_up = session.send(jobs, schedule.concurrency, lags, limits=limits, look=watch.look)
            except KeyboardInterrupt:
                cut_off = True
            share = pressure.share()
        if kept_up and not cut_off:
            watch.last(session.seen)
        after = None if cut_off else _state(endpoint)
        hits, seen = prefix_hit_share(before, after), looker.seen(after.memory if after else None)
        records = session.records(jobs)
    checked = gates.check(schedule, records, lags, share, hits, own)
    summary = metrics.summarise(records, started_at)
    run = Run(
        *(service, schedule, nonce, started, started_at, records, summary, checked, cut_off, not kept_up, *own),
        server=seen,
        workers=workers,
    )
    if cut_off:
        raise CutOff(run)
    return run


def measure_until_interrupted(
    service: Service, schedule: Schedule, nonce: str | None, progress: Progress, workers: int
) -> Run:
    """As `measure`; of a load that is interrupted, what there is of the run."""
    try:
        return measure(service, schedule, nonce, progress, workers)
    except CutOff as interrupt:
        return interrupt.run


def _state(endpoint: Endpoint) -> State | None:
    """What the server counts, where it says so."""
    try:
        return endpoint.scrape()
    except ServerError:
        return None


def warm_up(session: Session | Crew, service: Service, schedule: Schedule, nonce: str, progress: Progress) -> None:
    """Send a few requests with prompts that no measured request repeats, as many at once as the run will."""
    at_once = min(schedule.concurrency or _WARM_UP_AT_ONCE, len(schedule.requests))
    count = at_once + 1 if schedule.limits.warm_up is None else schedule.limits.warm_up  # the first runs alone
    if not count:
        return
    each = zip(range(count), cycle(schedule.requests), strict=False)
    like = [replace(request, index=i, after=None, family=None) for i, request in each]
    jobs = client.jobs(service, like, f"warm-up {nonce}")
    session.send(jobs, at_once, on_end=counter("warm-up", count, progress))
    records = session.records(jobs)
    if all(record.error for record in records):
        raise ServerError(f"every request of the warm-up failed ({records[0].error}); {_remedy(service, records[0])}")


def _remedy(service: Service, refused: Record) -> str:
    """What to change so that the server takes the requests."""
    said = refused.error or ""
    if service.length_field == "max_tokens" and "max_completion_tokens" in said:
        return "give --length-field max_completion_tokens"
    if service.api == "completions" and "chat/completions" in said:
        return "give --api chat"
    if not service.plain and any(name in said for name in ("ignore_eos", "min_tokens", "continuous_usage_stats")):
        return "give --plain, and have a model there that has no end token"
    if not service.plain and refused.status in (400, 422):
        return "a server that knows nothing beyond OpenAI's API needs --plain"
    return "check URL, --model, --api and the key"


def own_tokens(session: Session | Crew, service: Service, schedule: Schedule, nonce: str) -> gates.Own:
    """What a chat template adds."""
    alone = _added(session, service, nonce)
    if alone is None or not any(request.history for request in schedule.requests):
        return gates.Own(alone)
    after_two = _added(session, service, nonce, [Message("user", "hello"), Message("assistant", "hello")])
    return gates.Own(alone, None if after_two is None else (after_two - alone) / 2)


def _added(session: Session | Crew, service: Service, nonce: str, history: Sequence[Message] = ()) -> int | None:
    """Those of a short question beyond its words."""
    short = Request(0, 0.0, workload.WORDS[0], None, 1, history=history)
    (job,) = client.jobs(service, [short], f"template {nonce}")
    session.send([job], 1)
    counted = session.records([job])[0].prompt_tokens
    return None if counted is None else max(0, counted - len(workload.marked(short, nonce).split()))


def pieces(run: Run, about: dict[str, Any]) -> Iterator[str]:
    """The JSON of the document with its records, and of `about`, piece by piece: an hour's is too large to be held."""
    yield json.dumps(_head(run, with_samples=True) | about, allow_nan=False)[:-1]
    for before, record in zip(chain([', "records": ['], repeat(", ")), _rows(run), strict=False):
        yield before + json.dumps(record, allow_nan=False)
    yield "]}" if run.records else ', "records": []}'


def document(run: Run, with_records: bool) -> dict[str, Any]:
    """The run as JSON, without what ran it on which machine: what was asked, what came of it, whether it counts."""
    return _head(run, with_samples=with_records) | ({"records": list(_rows(run))} if with_records else {})


def _head(run: Run, with_samples: bool) -> dict[str, Any]:
    asked = {**run.service.described(), **run.schedule.made_of}
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "started": run.started.isoformat(timespec="milliseconds"),
        "limits": asdict(run.schedule.limits),
        "workers": run.workers,
        "load": asked
        | {"nonce": run.nonce, "template_tokens": run.template_tokens, "message_tokens": run.message_tokens},
        "valid": run.valid,
        "cut_off": run.cut_off,
        "over_saturated": run.over_saturated,
        "schedule_sha256": schedule_file.digest(run.schedule),
        "gates": [asdict(gate) | {"passed": gate.passed} for gate in run.gates],
        "summary": run.summary.as_dict(),
        "slo": run.slo.as_dict() if run.slo else None,
        "server": run.server and run.server.as_dict(run.started_at, with_samples=with_samples),
    }


def _rows(run: Run) -> Iterator[dict[str, Any]]:
    planned = {request.index: request for request in run.schedule.requests}
    return (_planned(planned[record.index]) | timeline(record, run.started_at) for record in run.records)


def _planned(request: Request) -> dict[str, Any]:
    return {"planned_prompt_tokens": request.prompt_tokens, "planned_output_tokens": request.output_tokens}


def timeline(record: Record, started_at: float) -> dict[str, Any]:
    """A record as plain data, its times in seconds after the start of the run."""
    plain = {each.name: getattr(record, each.name) for each in fields(record)}
    plain["coalesced_reads"] = gaps.coalesced(record)
    plain["chunks"] = record.chunks.plain(started_at)
    for name in TIMES:
        plain[name] = None if plain[name] is None else plain[name] - started_at
    return plain
