"""Servers of `paged` without any time passing: loads by the hundred, whose truth is known.

They take requests in turn. A client hears of a token when its step ends.
"""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import cast

import numpy as np

from twofour.bench.load.records import Chunks, Record, Request
from twofour.bench.proof.paged import Machine, PagedBatch, Step


@dataclass(frozen=True)
class Told:
    """What clients saw, and the steps of all servers."""

    records: list[Record]
    steps: list[Step]


def serve(requests: Sequence[Request], machine: Machine, servers: int = 1) -> Told:
    """Every request comes at its time. Each server has noise of its own."""
    told = Told([], [])
    for number in range(servers):
        one = _one(requests[number::servers], replace(machine, seed=machine.seed * 1000 + number))
        told.records.extend(one.records)
        told.steps.extend(one.steps)
    return replace(told, records=sorted(told.records, key=lambda record: record.index))


def capacity(requests: Sequence[Request], machine: Machine) -> float:
    """Requests per second that one server gets done when they are all there, while all places are taken."""
    records = serve([replace(request, at_s=0.0) for request in requests], machine).records
    ends = sorted(cast(float, record.done_at) for record in records)
    quarter = len(ends) // 4
    return (len(ends) - 2 * quarter - 1) / (ends[-quarter - 1] - ends[quarter])


def _one(requests: Sequence[Request], machine: Machine) -> Told:
    batch, now, steps = PagedBatch(machine), 0.0, list[Step]()
    coming = deque(sorted(requests, key=lambda request: request.at_s))
    at: dict[int, list[float]] = {request.index: [] for request in requests}
    while coming or not batch.idle:
        while coming and (batch.idle or coming[0].at_s <= now):
            now = max(now, coming[0].at_s)
            _add(batch, coming.popleft())
        now += batch.begin()
        steps.append(batch.log[-1])
        for key in batch.end():
            at[cast(int, key)].append(now)
    return Told([_ended(request, at[request.index]) for request in requests], steps)


def _add(batch: PagedBatch, request: Request) -> None:
    words = [str(request.index)] * (request.prompt_tokens or 1)  # like no other's
    batch.add(request.index, words, request.output_tokens)


def _ended(request: Request, at: Sequence[float]) -> Record:
    """at: when each of its tokens came."""
    record = Record(request.index, request.at_s, request.at_s, request.at_s, Chunks(at, np.ones(len(at), np.uint8)))
    record.done_at, record.status, record.finish_reason = at[-1], 200, "length"
    record.prompt_tokens, record.output_tokens = request.prompt_tokens, request.output_tokens
    record.kinds = {"text": request.output_tokens}
    return record
