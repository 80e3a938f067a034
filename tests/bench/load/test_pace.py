import asyncio
from itertools import pairwise
from time import perf_counter

import pytest

from twofour.bench.load import pace
from twofour.bench.load.pace import Job
from twofour.bench.load.records import Request
from twofour.bench.load.workload import UNLIMITED, Limits


def jobs(*requests: tuple[float, int | None], think_s: float = 0.0) -> list[Job]:
    """Each of a time, and of the turn before it."""
    made = [
        Request(i, at_s, "x", 1, 1, after, think_s if after is not None else 0.0)
        for i, (at_s, after) in enumerate(requests)
    ]
    return [Job(request, b"") for request in made]


class Server:
    """Takes `takes_s` for each, and notes what was under way."""

    def __init__(self, takes_s: float = 0.01) -> None:
        self.takes_s = takes_s
        self.spans: dict[int, tuple[float, float]] = {}
        self.under_way = self.most = 0

    async def send(self, job: Job) -> None:
        came = perf_counter()
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        await asyncio.sleep(self.takes_s)
        self.under_way -= 1
        job.exchange.done_at = perf_counter()
        self.spans[job.request.index] = (came, job.exchange.done_at)


def driven(load: list[Job], concurrency: int | None, limits: Limits = UNLIMITED, takes_s: float = 0.01) -> Server:
    server = Server(takes_s)
    asyncio.run(pace.drive(server.send, load, concurrency, limits))
    return server


def test_sessions_are_found_by_what_waits_for_what() -> None:
    load = jobs((0.0, None), (0.0, None), (0.0, 0), (0.0, 2), (0.0, 1), (0.0, None))
    assert [[job.request.index for job in turns] for turns in pace.sessions(load)] == [[0, 2, 3], [1, 4], [5]]
    assert [[job.request.index for job in turns] for turns in pace.sessions(load[2:])] == [[2, 3], [4], [5]]


@pytest.mark.parametrize("concurrency", [None, 2])
def test_a_turn_waits_for_the_one_before_it_and_for_its_user(concurrency: int | None) -> None:
    load = jobs((0.0, None), (0.0, 0), (0.0, 1), (0.001, None), (0.0, 3), (0.0, 4), think_s=0.02)
    spans = driven(load, concurrency).spans
    assert len(spans) == 6
    for one, two in [(0, 1), (1, 2), (3, 4), (4, 5)]:
        due_at = load[two].exchange.scheduled_at
        assert due_at == pytest.approx(spans[one][1] + 0.02)
        assert spans[two][0] >= due_at


def test_a_worker_stays_with_its_session() -> None:
    load = jobs(*[(0.0, None if i % 3 == 0 else i - 1) for i in range(12)])
    server = driven(load, 1)
    assert server.most == 1
    assert list(server.spans) == list(range(12))
    assert driven(jobs(*[(0.0, None if i % 3 == 0 else i - 1) for i in range(12)]), 3).most == 3


def test_what_is_due_waits_where_only_so_many_may_be_under_way() -> None:
    load = jobs(*[(i * 0.001, None) for i in range(9)])
    server = driven(load, None, Limits(max_in_flight=2), takes_s=0.03)
    assert server.most == 2
    assert [job.exchange.held for job in load] == [False] * 2 + [True] * 7
    due = [job.exchange.scheduled_at for job in load]
    assert [after - before for before, after in pairwise(due)] == pytest.approx([0.001] * 8)
    assert all(server.spans[i][0] >= due[i] for i in range(9))


def test_nothing_is_held_where_all_may_be_under_way() -> None:
    load = jobs(*[(i * 0.001, None) for i in range(9)])
    assert driven(load, None, Limits(max_in_flight=9), takes_s=0.03).most <= 9
    assert not any(job.exchange.held for job in load)


def test_an_open_loop_ends_by_its_time_and_answers_still_come() -> None:
    load = jobs((0.0, None), (0.01, None), (0.05, None), (0.0, 0), (0.0, 3), think_s=0.02)
    server = driven(load, None, Limits(duration_s=0.05), takes_s=0.03)
    assert set(server.spans) == {0, 1}  # the turn after the first would leave after 0.05 s


def test_a_closed_loop_ends_by_its_time_and_answers_still_come() -> None:
    load = jobs(*[(0.0, None)] * 500)
    server = driven(load, 2, Limits(duration_s=0.1))
    sent = len(server.spans)
    assert 0 < sent < 500 and set(server.spans) == set(range(sent))
    unsent = [job for job in load if job.request.index >= sent]
    assert all(job.exchange.done_at is None for job in unsent)


def test_workers_start_spread_over_the_time_of_the_first_request() -> None:
    server = driven(jobs(*[(0.0, None)] * 4), 3, takes_s=0.06)
    ends = server.spans[0][1]
    starts = [server.spans[i][0] - ends for i in (1, 2, 3)]
    assert all(start >= 0 for start in starts)
    assert starts == sorted(starts) and starts[2] >= 0.04 - pace.TIMER_S


def test_no_jobs_no_load() -> None:
    assert driven([], 3).spans == driven([], None).spans == {}
