"""Who is let in, and who makes room."""

from typing import Any

import pytest

from twofour.serve.http import crowd
from twofour.serve.http.crowd import SPARE, Crowd, connection_limit


class Visitor:
    def __init__(self) -> None:
        self.out = False

    def turn_out(self) -> None:
        self.out = True


def fill(made: Crowd, count: int) -> list[Visitor]:
    visitors = [Visitor() for _ in range(count)]
    assert all([made.enter(visitor) for visitor in visitors])
    return visitors


def test_below_the_limit_nobody_has_to_go() -> None:
    made = Crowd(3)
    assert not any(visitor.out for visitor in fill(made, 3)) and not made.over


def test_who_is_waited_for_longest_makes_room() -> None:
    made = Crowd(3)
    first, second, third = fill(made, 3)
    made.works_for(first)
    made.waits_for(second)  # as before: that does not make it newer
    fill(made, 1)
    assert (first.out, second.out, third.out) == (False, True, False)
    made.waits_for(first)  # from now on
    fill(made, 1)
    assert (first.out, third.out) == (False, True)
    assert not made.over


def test_where_all_wait_for_the_server_a_few_more_are_let_in() -> None:
    made = Crowd(3)
    workers = fill(made, 3)
    for worker in workers:
        made.works_for(worker)
    assert not made.over
    more = fill(made, SPARE)
    assert made.over and not any(visitor.out for visitor in workers)
    assert sum(visitor.out for visitor in more) == SPARE - 1, "they, too, make room for each other"


def test_nobody_gets_in_where_the_few_are_worked_for_too() -> None:
    made = Crowd(3)
    for _ in range(3 + SPARE):
        visitor = Visitor()
        assert made.enter(visitor)
        made.works_for(visitor)
    assert not made.enter(Visitor())


def test_who_has_gone_is_forgotten() -> None:
    made = Crowd(1)
    (visitor,) = fill(made, 1)
    made.leave(visitor)
    made.waits_for(visitor)
    fill(made, 1)
    assert not visitor.out


@pytest.mark.parametrize("files", [64, 200, 1024, 1 << 20])
def test_the_limit_leaves_files_for_others(monkeypatch: pytest.MonkeyPatch, files: int) -> None:
    monkeypatch.setattr(crowd.resource, "getrlimit", lambda which: (files, files))
    monkeypatch.setattr(crowd.os, "listdir", lambda folder: ["0"] * 10)
    assert connection_limit() == min(crowd.MAX_CONNECTIONS, files - 10 - crowd.RESERVED_FILES - SPARE)


def test_the_limit_of_open_files_is_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(crowd.resource, "getrlimit", lambda which: (1024, 4096))
    monkeypatch.setattr(crowd.resource, "setrlimit", lambda which, limits: asked.append(limits))
    crowd.raise_open_files()
    assert asked == [(4096, 4096)]
