"""Servers of which the limit is known, simulated: what a client would write down, without any time passing."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

from twofour.bench.load import gates, metrics
from twofour.bench.load.gates import Gate
from twofour.bench.load.records import Chunk, Chunks, Record, Request
from twofour.bench.load.run import Run
from twofour.bench.load.service import Service
from twofour.bench.load.workload import Schedule
from twofour.bench.proof.batching import Steps
from twofour.bench.proof.simulation import Answered, Asked, closed_loop, open_loop

BEGAN = 100.0


def queued(service: Service, schedule: Schedule, token_s: float, failed: Gate | None = None) -> Run:
    """One request after another: every token takes `token_s`, who comes meanwhile waits. A gate may be made to fail."""
    records, free = list[Record](), BEGAN
    for request in schedule.requests:
        came = BEGAN + request.at_s if schedule.concurrency is None else free
        begins = max(came, free)
        chunks = [Chunk(begins + (token + 1) * token_s, 1) for token in range(request.output_tokens)]
        free = chunks[-1].at
        records.append(_record(request, came, chunks))
    return _run(service, schedule, records, failed)


def batched(service: Service, schedule: Schedule, steps: Steps) -> Run:
    """Many requests share its steps."""
    asked = [Asked(each.at_s, each.prompt_tokens, each.output_tokens) for each in schedule.requests]
    closed = schedule.concurrency
    answered = open_loop(steps, asked) if closed is None else closed_loop(steps, asked, closed)
    in_order = sorted(answered, key=lambda each: each.asked_at)
    records = [_answered(*each) for each in zip(schedule.requests, in_order, strict=True)]
    return _run(service, schedule, records, None)


def _answered(request: Request, answer: Answered) -> Record:
    chunks = [Chunk(BEGAN + answer.first_at, 1), Chunk(BEGAN + answer.last_at, answer.output - 1)]
    return _record(request, BEGAN + answer.asked_at, chunks)


def _record(request: Request, came: float, chunks: list[Chunk]) -> Record:
    record = Record(request.index, came, came, came, Chunks.of(chunks), chunks[-1].at)
    return replace(record, prompt_tokens=request.prompt_tokens, output_tokens=request.output_tokens)


def _run(service: Service, schedule: Schedule, records: Sequence[Record], failed: Gate | None) -> Run:
    checked = gates.check(schedule, records, lags=[0.0001], pressure=0.01)
    checked = [failed if failed and gate.name == failed.name else gate for gate in checked]
    summary = metrics.summarise(records, BEGAN)
    return Run(service, schedule, "nonce", datetime(2026, 9, 1, tzinfo=UTC), BEGAN, records, summary, checked)
