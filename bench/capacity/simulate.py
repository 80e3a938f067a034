"""The Records that so many replicas behind a router would give a Schedule, without any time passing.

What passes beside the steps of an engine lies before a request reaches it: a client sees a token when its step ends.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, nextafter

import numpy as np
from numpy.typing import NDArray

from twofour.bench.capacity import profile
from twofour.bench.capacity.clients import Clients
from twofour.bench.capacity.contents import OWN, shared_keys
from twofour.bench.capacity.replica import Replica
from twofour.bench.capacity.router import BLIND, ROUTERS
from twofour.bench.capacity.sequences import Job
from twofour.bench.load.records import Chunks, Record, Request
from twofour.bench.load.workload import Schedule
from twofour.prune.errors import InputError


@dataclass(frozen=True)
class Usage:
    """What one replica did."""

    steps: int
    busy_s: float  # in steps
    preemptions: int
    most_running: int
    most_waiting: int
    most_kv_share: float  # of its blocks, in use at a time
    most_prefill: int  # tokens of prompts in a step
    most_attended: int  # tokens of the cache, of all that decode in a step
    cached_tokens: int  # of prompts, found in its cache
    requests: int


@dataclass(frozen=True)
class Simulated:
    records: list[Record]
    usage: Sequence[Usage]  # by replica


def simulate(
    schedule: Schedule, replica: profile.Replica, count: int = 1, router: str = "round_robin", seed: int = 0
) -> list[Record]:
    """Times are seconds after the start of the run. seed: of the residuals and of what a router draws."""
    return run(schedule, replica, count, router, seed).records


def run(
    schedule: Schedule, replica: profile.Replica, count: int = 1, router: str = "round_robin", seed: int = 0
) -> Simulated:
    """The same, with what the replicas did."""
    _refuse(schedule, replica, count, router)
    return _Run(schedule, replica, count, router, seed).simulated()


def always_more(requests: Sequence[Request]) -> list[Request]:
    """The same without a pause: all at once, and later turns of a session when the one before ends."""
    return [replace(each, at_s=0.0, think_s=0.0) for each in requests]


def served_per_s(records: Sequence[Record]) -> float | None:
    """Requests that ended a second, while there was always more to do. None: too few ended to say."""
    ends = sorted(each.done_at or 0.0 for each in records if each.error is None)
    first, last = len(ends) // 4, len(ends) - len(ends) // 4 - 1  # the beginning and the end do not count
    if len(ends) < _FEWEST_ENDS or ends[last] <= ends[first]:
        return None
    return (last - first) / (ends[last] - ends[first])


_FEWEST_ENDS = 8


class _Run:
    def __init__(self, schedule: Schedule, replica: profile.Replica, count: int, router: str, seed: int) -> None:
        self._requests, self._replica = schedule.requests, replica
        self._clients = Clients(schedule)
        self._react, self._blind = self._clients.react, router in BLIND
        self._choose = ROUTERS[router](count, seed)
        self._place = {request.index: number for number, request in enumerate(schedule.requests)}
        self._keys = shared_keys(schedule.requests, replica.limits.block_size) if replica.limits.prefix_cache else {}
        self._replicas = [Replica(replica, (seed, number), self._note_end) for number in range(count)]
        self._loads = [0] * count
        self._at: dict[int, int] = {}  # by the index of a request, where it was sent
        self._jobs: dict[int, Job] = {}
        self._records: list[Record] = []
        self._over: list[tuple[float, int]] = []  # a heap of answers that have ended, and nobody has looked at

    def simulated(self) -> Simulated:
        while (at := self._next_at()) < inf:
            if self._over and self._over[0][0] <= at:
                self._end(*heapq.heappop(self._over))
            elif leaving := self._clients.leave():
                self._send(*leaving)
        for replica in self._replicas:
            replica.advance(inf)
            replica.check_idle()
        return Simulated(self._told(), [self._usage(number) for number in range(len(self._replicas))])

    def _next_at(self) -> float:
        """When something happens next that is not a step; all steps that begin before have been taken."""
        if not self._react:
            at = self._clients.next_at
            for replica in self._replicas if at < inf and not self._blind else ():
                replica.advance(at)
            return min(at, self._over[0][0]) if self._over and not self._blind else at
        while True:
            at = min(self._clients.next_at, self._over[0][0] if self._over else inf)
            begins_at, number = min((each.begins_at, number) for number, each in enumerate(self._replicas))
            if begins_at >= at:
                return at
            others = (each.begins_at for each in self._replicas if each is not self._replicas[number])
            until = min(at, max(min(others, default=inf), nextafter(begins_at, inf)))
            self._replicas[number].advance(until, once=True)

    def _send(self, scheduled_at: float, sent_at: float, held: bool, request: Request) -> None:
        record = Record(request.index, scheduled_at, sent_at, held=held, prompt_tokens=request.prompt_tokens)
        self._records.append(record)
        if refused := _refusal(request, self._replica.limits):
            record.error, record.status, record.done_at = refused, 400, sent_at + self._replica.around.first_s
            heapq.heappush(self._over, (record.done_at, request.index))
            return
        job = self._jobs[request.index] = self._job(request)
        where = self._at[request.index] = self._choose(self._loads, job.shared[0] if job.shared else None)
        self._loads[where] += 1
        self._replicas[where].bring(job, sent_at + self._replica.around.first_s)

    def _job(self, request: Request) -> Job:
        keys, own = self._keys.get(request.index, ()), (self._place[request.index] + 1) * OWN
        return Job(request.index, request.prompt_tokens or 0, request.output_tokens, keys, own)

    def _note_end(self, job: Job, at: float) -> None:
        if self._react or not self._blind:
            heapq.heappush(self._over, (at, job.index))

    def _end(self, at: float, index: int) -> None:
        if index in self._at:
            self._loads[self._at[index]] -= 1
        if held := self._clients.ended(self._requests[self._place[index]], at):
            self._send(*held)

    def _told(self) -> list[Record]:
        """The records in the order of the schedule, filled in."""
        ends = [np.array(replica.ends) for replica in self._replicas]
        for record in self._records:
            if job := self._jobs.get(record.index):
                _fill(record, job, ends[self._at[record.index]])
        return sorted(self._records, key=lambda record: self._place[record.index])

    def _usage(self, number: int) -> Usage:
        replica, blocks = self._replicas[number], self._replica.limits.kv_blocks
        jobs = [job for job in self._jobs.values() if self._at[job.index] == number]
        return Usage(
            steps=len(replica.ends),
            busy_s=replica.busy_s,
            preemptions=replica.preemptions,
            most_running=replica.most_running,
            most_waiting=replica.most_waiting,
            most_kv_share=1 - replica.cache.fewest / blocks,
            most_prefill=replica.most_prefill,
            most_attended=replica.most_attended,
            cached_tokens=sum(job.cached_tokens or 0 for job in jobs),
            requests=len(jobs),
        )


def _fill(record: Record, job: Job, ends: NDArray[np.float64]) -> None:
    at = np.concatenate([ends[begin:end] for begin, end in job.spans])
    record.chunks = Chunks(at, np.ones(len(at), np.uint8))
    record.done_at, record.status, record.finish_reason = float(at[-1]), 200, "length"
    record.output_tokens, record.cached_tokens, record.kinds = job.output, job.cached_tokens, {"text": job.output}


def _refusal(request: Request, limits: profile.EngineLimits) -> str | None:
    most = min(limits.context_length, limits.kv_blocks * limits.block_size)
    asked = (request.prompt_tokens or 0) + request.output_tokens
    return f"HTTP 400: {asked} tokens do not fit into {most}" if asked > most else None


def _refuse(schedule: Schedule, replica: profile.Replica, count: int, router: str) -> None:
    if any(request.prompt_tokens is None for request in schedule.requests):
        raise InputError("the schedule does not say how long its prompts are; give --tokenizer, to count their tokens")
    if router not in ROUTERS:
        raise InputError(f"no router is called {router!r}; there are {', '.join(ROUTERS)}")
    if count < 1:
        raise InputError(f"{count} replicas serve nothing; ask for at least 1")
    limits = replica.limits
    if min(limits.max_num_seqs, limits.max_num_batched_tokens, limits.kv_blocks, limits.block_size) < 1:
        raise InputError(f"a server with these limits serves nothing: {limits}; measure its profile again")
