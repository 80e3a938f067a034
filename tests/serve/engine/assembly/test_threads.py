"""One thread computes where all of them are slower, and what is done about it is said."""

from collections.abc import Iterator, Sequence

import pytest
import torch
from torch import Tensor

from twofour.prune.machine import contention
from twofour.serve.engine.assembly import threads
from twofour.serve.engine.runners import Chunk


@pytest.fixture(autouse=True)
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(contention, "kept_waiting_s", lambda: 0.0)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


class Scripted:
    """Takes what a script says, by threads and round, on a clock of its own."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: dict[int, list[float]]) -> None:
        self.now, self.seconds, self.calls = 0.0, seconds, dict.fromkeys(seconds, 0)
        monkeypatch.setattr(threads.time, "perf_counter", lambda: self.now)

    def forward(self, chunks: Sequence[Chunk]) -> Tensor:
        count = torch.get_num_threads()
        script = self.seconds[count]
        self.now += script[self.calls[count] % len(script)]
        self.calls[count] += 1
        return torch.empty(1, 8)


@pytest.mark.parametrize(
    ("one", "two", "left"),
    [
        ([0.015], [0.008], 2),
        ([0.015], [0.016], 2),  # too little
        ([0.015], [0.025], 1),
        ([0.015], [0.025, 0.025, 0.008], 2),  # in two rounds of three
        ([0.05], [0.1], 1),  # in the two rounds that the time allows
    ],
)
def test_one_thread_that_is_clearly_faster_stays(
    monkeypatch: pytest.MonkeyPatch, one: list[float], two: list[float], left: int
) -> None:
    runner = Scripted(monkeypatch, {1: one, 2: two})
    note = threads.settle(runner, None)
    assert torch.get_num_threads() == left
    assert (note is None) == (left == 2)
    assert runner.now < 2 * threads.TRIAL_S + sum(one[:1] + two[:1])


def test_threads_that_were_asked_for_stay_and_the_note_tells_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    note = threads.settle(Scripted(monkeypatch, {1: [0.01], 2: [0.02]}), 2)
    assert note == "a step takes 20.0 ms on 2 threads and 10.0 on one; --threads 1 is faster here"
    assert torch.get_num_threads() == 2


def test_beside_other_work_nothing_is_decided(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Scripted(monkeypatch, {1: [0.01], 2: [0.02]})
    monkeypatch.setattr(contention, "kept_waiting_s", lambda: runner.now / 10)
    assert threads.settle(runner, None) is None
    assert torch.get_num_threads() == 2


def test_a_step_too_long_for_two_rounds_decides_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert threads.settle(Scripted(monkeypatch, {1: [1.0], 2: [2.0]}), None) is None
    assert torch.get_num_threads() == 2


def test_one_thread_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(1)
    runner = Scripted(monkeypatch, {1: [1.0]})
    assert threads.settle(runner, None) is None and not runner.now


def test_no_more_threads_than_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "usable_cores", lambda: 1)
    assert threads.default_count() == 1
    monkeypatch.setattr(threads, "usable_cores", lambda: 64)
    assert threads.default_count() == 2
