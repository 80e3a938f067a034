"""One load test of one server: warm up, drive, sum up, check."""

import secrets
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from time import perf_counter
from typing import Any

from twofour.bench.load import client, decode, gates, metrics, wire, workload
from twofour.bench.load.client import Job, Session
from twofour.bench.load.endpoint import Endpoint, State, prefix_hit_share
from twofour.bench.load.gates import Gate
from twofour.bench.load.metrics import Summary
from twofour.bench.load.records import Record, Request
from twofour.bench.load.workload import Load
from twofour.prune.errors import ServerError
from twofour.prune.progress import Progress, counter, silent

KIND = "twofour.bench.run"
SCHEMA_VERSION = 2  # 1 called it `version`, and knew neither planned lengths nor runs that were cut off
_WARM_UP_AT_ONCE = 4  # in an open loop, which sets no such number


@dataclass(frozen=True)
class Run:
    load: Load
    nonce: str
    started: datetime  # the wall clock at `started_at`
    started_at: float
    requests: Sequence[Request]
    records: Sequence[Record]  # of those requests that were sent
    summary: Summary
    gates: Sequence[Gate]
    cut_off: bool = False  # interrupted: what was measured until then

    @property
    def valid(self) -> bool:
        return not self.cut_off and not gates.failed(self.gates)


class CutOff(KeyboardInterrupt):
    """An interrupt that ended a load, with what was measured until then."""

    def __init__(self, run: Run) -> None:
        super().__init__()
        self.run = run


def measure(load: Load, api_key: str | None = None, progress: Progress = silent) -> Run:
    """Load-test a server that is up.

    Raises ServerError if the server answers not one request of the warm-up, CutOff if the load is interrupted.
    """
    requests = workload.schedule(load.requests, load.prompt_tokens, load.output_tokens, load.seed, load.rate)
    nonce, lags, cut_off = load.nonce or secrets.token_hex(4), list[float](), False
    with client.connected(load.url, load.timeout_s) as session:
        warm_up(session, load, nonce, api_key, progress)
        jobs, before = _jobs(load, requests, nonce, api_key), _state(load, api_key)
        pressure, started, started_at = gates.Pressure(), datetime.now(UTC), perf_counter()
        try:
            session.send(jobs, load.concurrency, lags, counter("load", len(jobs), progress))
        except KeyboardInterrupt:
            cut_off = True
        share = pressure.share()
    records = [decode.record(job.exchange, api_key) for job in jobs if job.exchange.done_at is not None]
    hits = None if cut_off else prefix_hit_share(before, _state(load, api_key))
    checked = gates.check(requests, records, lags=lags, pressure=share, concurrency=load.concurrency, prefix_hits=hits)
    summary = metrics.summarise(records, started_at)
    run = Run(load, nonce, started, started_at, requests, records, summary, checked, cut_off)
    if cut_off:
        raise CutOff(run)
    return run


def _state(load: Load, api_key: str | None) -> State | None:
    """What the server counts, where it says so."""
    try:
        return Endpoint(load.url, load.model, api_key).scrape()
    except ServerError:
        return None


def warm_up(session: Session, load: Load, nonce: str, api_key: str | None, progress: Progress) -> None:
    """Send a few requests with prompts that no measured request repeats, as many at once as the run will."""
    count = min(load.concurrency or _WARM_UP_AT_ONCE, load.requests) + 1  # the first runs alone
    requests = workload.schedule(count, load.prompt_tokens, load.output_tokens, load.seed + 1)
    jobs = _jobs(load, requests, f"warm-up {nonce}", api_key)
    session.send(jobs, count, on_end=counter("warm-up", count, progress))
    records = [decode.record(job.exchange, api_key) for job in jobs]
    if all(record.error for record in records):
        raise ServerError(f"every request of the warm-up failed ({records[0].error}); check URL, --model and the key")


def _jobs(load: Load, requests: Sequence[Request], nonce: str, api_key: str | None) -> list[Job]:
    return client.jobs(load.url, load.model, requests, nonce, api_key=api_key, plain=load.plain)


def document(run: Run, with_records: bool) -> dict[str, Any]:
    """The run as JSON, without what ran it on which machine: what was asked, what came of it, whether it counts."""
    load = asdict(run.load) | {
        "url": wire.shown(run.load.url),
        "prompt_tokens": str(run.load.prompt_tokens),
        "output_tokens": str(run.load.output_tokens),
    }
    result = {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "started": run.started.isoformat(timespec="milliseconds"),
        "load": load | {"nonce": run.nonce},
        "valid": run.valid,
        "cut_off": run.cut_off,
        "gates": [asdict(gate) | {"passed": gate.passed} for gate in run.gates],
        "summary": run.summary.as_dict(),
    }
    if with_records:
        planned = {request.index: request for request in run.requests}
        result["records"] = [_planned(planned[r.index]) | timeline(r, run.started_at) for r in run.records]
    return result


def _planned(request: Request) -> dict[str, Any]:
    return {"planned_prompt_tokens": request.prompt_tokens, "planned_output_tokens": request.output_tokens}


def timeline(record: Record, started_at: float) -> dict[str, Any]:
    """A record as plain data, its times in seconds after the start of the run."""
    plain = asdict(record)
    plain["coalesced_reads"] = metrics.coalesced(record)
    plain["chunks"] = [[chunk.at - started_at, chunk.tokens] for chunk in record.chunks]
    for name in ("scheduled_at", "connecting_at", "connected_at", "sent_at", "headers_at", "done_at"):
        plain[name] = None if plain[name] is None else plain[name] - started_at
    return plain
