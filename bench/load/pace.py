"""When each request of a load leaves.

Open loop: every request leaves at its time, whatever is still under way. Closed loop: so many workers send one request
after another; the first request runs alone, and the workers then start spread over the time that it took, so that they
do not march in step. The turns of a session go one after another in both; a worker of a closed loop stays with its
session to the end. A time-out of the load ends no answer: nothing new leaves.
"""

import asyncio
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from math import inf
from time import perf_counter

from twofour.bench.load.decode import Exchange
from twofour.bench.load.records import Request
from twofour.bench.load.workload import Limits

TIMER_S = 0.001  # the step of a loop's timers: what is no later than this is on time


@dataclass
class Job:
    request: Request
    message: bytes = field(repr=False)  # the key is in it
    exchange: Exchange = field(init=False)

    def __post_init__(self) -> None:
        self.exchange = Exchange(self.request.index)


Send = Callable[[Job], Coroutine[None, None, None]]
Turns = Sequence[Job]  # of one session, in order; of most, one


def drive(send: Send, jobs: Sequence[Job], concurrency: int | None, limits: Limits) -> Coroutine[None, None, None]:
    """The load as a coroutine. `send` raises nothing of its own."""
    if concurrency is None:
        return _open_loop(_guarded(send, limits.max_in_flight), jobs, limits)
    return _closed_loop(send, jobs, concurrency, limits)


def sessions(jobs: Iterable[Job]) -> list[Turns]:
    """In the order of their first turns. A turn whose predecessor is not among the jobs begins one."""
    found, last = list[list[Job]](), dict[int, list[Job]]()
    for job in jobs:
        turns = last.pop(job.request.after, None) if job.request.after is not None else None
        if turns is None:
            turns = []
            found.append(turns)
        turns.append(job)
        last[job.request.index] = turns
    return list(found)


def _guarded(send: Send, most: int | None) -> Send:
    """The same, but what is due waits while so many are under way; its scheduled time stays."""
    if most is None:
        return send
    free = asyncio.Semaphore(most)

    async def guarded(job: Job) -> None:
        job.exchange.held = free.locked()
        async with free:
            await send(job)

    return guarded


async def _open_loop(send: Send, jobs: Sequence[Job], limits: Limits) -> None:
    started_at = perf_counter()
    ends_at = started_at + (inf if limits.duration_s is None else limits.duration_s)
    async with asyncio.TaskGroup() as group:
        for first, *later in sorted(sessions(jobs), key=lambda turns: turns[0].request.at_s):
            first.exchange.scheduled_at = due_at = started_at + first.request.at_s
            if due_at >= ends_at:
                return
            await until(due_at)
            group.create_task(_session(send, first, later, ends_at) if later else send(first))


async def _session(send: Send, first: Job, later: Turns, ends_at: float) -> None:
    await send(first)
    await _continue(send, first, later, ends_at)


async def _continue(send: Send, before: Job, later: Turns, ends_at: float) -> None:
    """Each turn leaves when the one before it has ended, and its user has thought."""
    for job in later:
        due_at = (before.exchange.done_at or perf_counter()) + job.request.think_s
        if due_at >= ends_at:
            return
        await until(due_at)
        job.exchange.scheduled_at, before = due_at, job
        await send(job)


async def until(due_at: float) -> None:
    # A loop's timers count whole milliseconds, so the last millisecond is spent in turns of the loop that do not wait.
    while (left_s := due_at - perf_counter()) > 0:
        await asyncio.sleep(max(0.0, left_s - TIMER_S))


async def _closed_loop(send: Send, jobs: Sequence[Job], concurrency: int, limits: Limits) -> None:
    if not jobs:
        return
    (first, *later), *others = sessions(jobs)
    started_at = perf_counter()
    ends_at = started_at + (inf if limits.duration_s is None else limits.duration_s)
    await _send_now(send, first)
    spread_s = (perf_counter() - started_at) / concurrency
    queue = iter(others)
    async with asyncio.TaskGroup() as group:
        group.create_task(_work(send, queue, 0.0, ends_at, first, later))
        for worker in range(1, min(concurrency, len(jobs))):
            group.create_task(_work(send, queue, worker * spread_s, ends_at))


async def _work(
    send: Send, queue: Iterator[Turns], delay_s: float, ends_at: float, before: Job | None = None, later: Turns = ()
) -> None:
    """Go through sessions, after what is left of the one of `before`."""
    await asyncio.sleep(delay_s)
    if before:
        await _continue(send, before, later, ends_at)
    for first, *later in takewhile(lambda _: perf_counter() < ends_at, queue):
        await _send_now(send, first)
        await _continue(send, first, later, ends_at)


async def _send_now(send: Send, job: Job) -> None:
    job.exchange.scheduled_at = perf_counter()
    await send(job)
