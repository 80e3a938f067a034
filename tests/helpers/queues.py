"""A server that answers one request after another, simulated: what a client would write down, without any time."""

from dataclasses import replace
from datetime import UTC, datetime

from twofour.bench.load import gates, metrics
from twofour.bench.load.gates import Gate
from twofour.bench.load.records import Chunk, Record
from twofour.bench.load.run import Run
from twofour.bench.load.service import Service
from twofour.bench.load.workload import Schedule

BEGAN = 100.0


def queued(service: Service, schedule: Schedule, token_s: float, failed: Gate | None = None) -> Run:
    """Every token takes `token_s`; who comes while another is answered waits. A gate may be made to fail."""
    records, free = list[Record](), BEGAN
    for request in schedule.requests:
        came = BEGAN + request.at_s if schedule.concurrency is None else free
        begins = max(came, free)
        chunks = [Chunk(begins + (token + 1) * token_s, 1) for token in range(request.output_tokens)]
        free = chunks[-1].at
        record = Record(request.index, came, came, begins, chunks, free)
        records.append(replace(record, prompt_tokens=request.prompt_tokens, output_tokens=request.output_tokens))
    checked = gates.check(schedule, records, lags=[0.0001], pressure=0.01)
    checked = [failed if failed and gate.name == failed.name else gate for gate in checked]
    summary = metrics.summarise(records, BEGAN)
    return Run(service, schedule, "nonce", datetime(2026, 9, 1, tzinfo=UTC), BEGAN, records, summary, checked)
