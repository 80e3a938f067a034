"""Several client processes as one session, for loads that one core cannot send.

Each worker is a `client.Session` in a process of its own. Whole conversations go to the workers in turn, and what is
allowed at a time is divided among them. They wait until all have their part, and begin at one moment: the clock is the
same for all processes of a host. While the load runs they say ten times a second what they see; when the clock has
stopped each decodes what came of its requests, and hands over their records.
"""

import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from time import perf_counter
from typing import Any

from twofour.bench.load import client, pace
from twofour.bench.load.client import Session
from twofour.bench.load.decode import Exchange
from twofour.bench.load.pace import Job
from twofour.bench.load.records import Record
from twofour.bench.load.service import Service
from twofour.bench.load.watch import Look, Seen
from twofour.bench.load.workload import UNLIMITED, Limits
from twofour.prune.errors import ServerError

SAY_S = 0.1
START_S = 0.05  # until all workers have heard when to begin
_END_S = 10.0


@dataclass(frozen=True)
class Part:
    """What one worker is to send."""

    jobs: list[Job]
    concurrency: int | None
    limits: Limits


@dataclass(frozen=True)
class Sight:
    """What one worker sees of its part: requests under way, and counts as in `watch.Seen`."""

    under_way: list[int]
    ended: int
    failed: int
    pieces: int


@dataclass(frozen=True)
class Done:
    kept_up: bool
    lags: list[float]
    sight: Sight


class Crew:
    """As `client.Session`."""

    def __init__(self, pipes: Sequence[Connection]) -> None:
        self._pipes = pipes
        self._busy: dict[Connection, list[Job]] = {}
        self.seen = Seen()

    def send(
        self,
        jobs: Sequence[Job],
        concurrency: int | None,
        lags: list[float] | None = None,
        on_end: Callable[[], None] | None = None,
        limits: Limits = UNLIMITED,
        look: Look | None = None,
    ) -> bool:
        parts = divided(jobs, concurrency, limits, len(self._pipes))
        busy = {pipe: part.jobs for pipe, part in zip(self._pipes, parts, strict=False)}
        for pipe, part in zip(busy, parts, strict=True):
            pipe.send(part)
        for pipe in busy:
            _heard(pipe)  # it has its part
        begins_at, self._busy = perf_counter() + START_S, busy
        for pipe in busy:
            pipe.send(begins_at)
        done = self._watched(look)
        for each in done:
            (lags if lags is not None else []).extend(each.lags)
        for _ in jobs:
            if on_end:
                on_end()
        return all(each.kept_up for each in done)

    def records(self, jobs: Sequence[Job]) -> list[Record]:
        """Of those of the latest load that were sent."""
        for pipe in self._busy:
            pipe.send("records")
        heard = (record for pipe, part in self._busy.items() for _ in part for record in _heard(pipe))
        found = {record.index: record for record in heard}
        self._busy = {}
        return [found[job.request.index] for job in jobs if job.request.index in found]

    def _watched(self, look: Look | None) -> list[Done]:
        """What the workers say at their end. Where this process is interrupted, or `look` says so, they end early."""
        sights, done = dict[Connection, Sight](), dict[Connection, Done]()
        cut_off: KeyboardInterrupt | None = None
        while left := [pipe for pipe in self._busy if pipe not in done]:
            try:
                ready = wait(left, SAY_S)
                for pipe in (pipe for pipe in left if pipe in ready):
                    said = _heard(pipe)
                    if isinstance(said, Done):
                        done[pipe] = said
                    sights[pipe] = said.sight if isinstance(said, Done) else said
                self.seen = together(list(sights.values()))
                if look and not cut_off and look(self.seen, perf_counter()):
                    self._stop(done)
            except KeyboardInterrupt as interrupt:
                cut_off = interrupt
                self._stop(done)
        if cut_off:
            raise cut_off
        return list(done.values())

    def _stop(self, done: dict[Connection, Done]) -> None:
        for pipe in self._busy.keys() - done.keys():
            pipe.send("stop")


def divided(jobs: Sequence[Job], concurrency: int | None, limits: Limits, workers: int) -> list[Part]:
    """Parts that hold something to do: conversations in turn, and an even share of what is allowed at a time."""
    workers = min(workers, concurrency or workers, limits.max_in_flight or workers)
    parts: list[list[Job]] = [[] for _ in range(workers)]
    for at, turns in enumerate(pace.sessions(jobs)):
        parts[at % workers] += turns
    return [
        Part(
            part,
            _share(concurrency, workers, at),
            replace(limits, max_in_flight=_share(limits.max_in_flight, workers, at)),
        )
        for at, part in enumerate(parts)
        if part
    ]


def together(sights: Sequence[Sight]) -> Seen:
    """What one client would have seen."""
    under_way = {index: Exchange(index) for sight in sights for index in sight.under_way}
    counts = (sum(column) for column in zip(*((s.ended, s.failed, s.pieces) for s in sights), strict=True))
    ended, failed, pieces = counts if sights else (0, 0, 0)
    return Seen(under_way, ended, failed, pieces)


def _share(whole: int | None, workers: int, at: int) -> int | None:
    return None if whole is None else whole // workers + (at < whole % workers)


@contextmanager
def connected(service: Service, workers: int) -> Iterator[Session | Crew]:
    """A session of one process, or of several, for the length of a `with` block."""
    if workers == 1:
        with client.connected(service.url, service.timeout_s, service.access) as session:
            yield session
        return
    context, pipes, processes = get_context("spawn"), list[Connection](), list[BaseProcess]()
    try:
        for _ in range(workers):
            mine, its = context.Pipe()
            processes.append(context.Process(target=_work, args=(its, service), daemon=True))
            processes[-1].start()
            its.close()
            pipes.append(mine)
        yield Crew(pipes)
    finally:
        for pipe in pipes:
            pipe.close()
        for process in processes:
            process.join(_END_S)
            process.kill()


def _heard(pipe: Connection) -> Any:
    try:
        return pipe.recv()
    except (EOFError, ConnectionError):
        raise ServerError("a client process has died; is there memory enough? try fewer --workers") from None


def _work(pipe: Connection, service: Service) -> None:
    """The life of a worker: one load after another, until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process hears of it, and says so
    try:
        with client.connected(service.url, service.timeout_s, service.access) as session:
            while True:
                _send(pipe, session, pipe.recv())
    except (EOFError, ConnectionError):
        return


def _send(pipe: Connection, session: Session, part: Part) -> None:
    pipe.send("here")
    begins_at, said_at, lags = pipe.recv(), 0.0, list[float]()

    def look(seen: Seen, now: float) -> bool:
        nonlocal said_at
        if now - said_at >= SAY_S:
            said_at = now
            pipe.send(_sight(seen))
        return pipe.poll() and pipe.recv() == "stop"

    time.sleep(max(0.0, begins_at - perf_counter()))
    kept_up = session.send(part.jobs, part.concurrency, lags, limits=part.limits, look=look)
    pipe.send(Done(kept_up, lags, _sight(session.seen)))
    while pipe.recv() != "records":  # it was told to stop when it had ended
        pass
    for job in part.jobs:
        pipe.send(session.records([job]))


def _sight(seen: Seen) -> Sight:
    return Sight([each.index for each in seen.under_way.values()], seen.ended, seen.failed, seen.pieces)
