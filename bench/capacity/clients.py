"""When each request of a simulated load is due: as `load.pace` has it, with time that is only counted.

Clients hear of time by `at` and of answers by `ended`; both say which requests leave now. An open loop knows its first
turns beforehand. Of a closed loop, the first request runs alone; its workers then start spread over the time that it
took, and each goes on with the session that it has, then with the next.
"""

import heapq
from collections import deque
from itertools import count
from math import inf

from twofour.bench.load.records import Request
from twofour.bench.load.workload import Schedule


class Clients:
    """The requests of a schedule, in the order in which they leave."""

    def __init__(self, schedule: Schedule) -> None:
        self._concurrency, limits = schedule.concurrency, schedule.limits
        self._ends_at = inf if limits.duration_s is None else limits.duration_s
        self._most = limits.max_in_flight if schedule.concurrency is None else None
        self._in_flight = 0
        self._held: deque[tuple[float, Request]] = deque()  # with the times at which they were due
        known = {request.index for request in schedule.requests}
        self._after: dict[int, Request] = {}  # by the index of the turn before
        first = []
        for request in schedule.requests:
            if request.after in known and request.after not in self._after:
                self._after[request.after] = request
            else:
                first.append(request)
        self._order = count()
        self._due: list[tuple[float, int, Request | None]] = []  # a heap; None: a worker that takes the next session
        self._queue: deque[Request] = deque()
        if self._concurrency is None:
            for request in sorted(first, key=lambda request: request.at_s):
                self._push(request.at_s, request)
        elif first:
            self._push(0.0, first[0])
            self._queue.extend(first[1:])
        self._alone = first[0].index if self._concurrency is not None and first else None
        self._requests = len(schedule.requests)

    @property
    def react(self) -> bool:
        """Whether any request waits for the end of another."""
        return self._concurrency is not None or self._most is not None or bool(self._after)

    @property
    def next_at(self) -> float:
        return self._due[0][0] if self._due else inf

    def leave(self) -> tuple[float, float, bool, Request] | None:
        """What is due next: scheduled, sent, held back, which. None: nothing leaves yet."""
        at, _, request = heapq.heappop(self._due)
        if request is None:
            if not self._queue or at >= self._ends_at:
                return None
            request = self._queue.popleft()
        if self._most is not None and self._in_flight >= self._most:
            self._held.append((at, request))
            return None
        self._in_flight += 1
        return at, at, False, request

    def ended(self, request: Request, at: float) -> tuple[float, float, bool, Request] | None:
        """An answer has ended. What was held back, and leaves now."""
        self._in_flight -= 1
        self._follow(request, at)
        if request.index == self._alone and self._concurrency:
            self._start_workers(at)
        if not self._held:
            return None
        self._in_flight += 1
        due_at, held = self._held.popleft()
        return due_at, at, True, held

    def _push(self, at: float, request: Request | None) -> None:
        heapq.heappush(self._due, (at, next(self._order), request))

    def _follow(self, request: Request, at: float) -> None:
        """The next turn of the session; in a closed loop, after the last one the next session."""
        later = self._after.get(request.index)
        if later is not None and at + later.think_s < self._ends_at:
            self._push(at + later.think_s, later)
        elif self._concurrency is not None:
            self._push(at, None)

    def _start_workers(self, at: float) -> None:
        concurrency = self._concurrency or 1
        for worker in range(1, min(concurrency, self._requests)):
            self._push(at + worker * at / concurrency, None)
