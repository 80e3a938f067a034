"""The race: turns, their order, how many calls, and the ring that keeps every call cold."""

from collections.abc import Callable

import pytest
import torch

from twofour.bench.kernels import cuda
from twofour.bench.kernels import race as module
from twofour.bench.kernels.contenders import Contender
from twofour.bench.kernels.race import TRIAL_CALLS, cpu_turn, race


class Runner:
    """A turn that takes scripted seconds and writes down that it ran."""

    def __init__(self, name: str, seconds: list[float], log: list[tuple[str, int]]) -> None:
        self.name, self.seconds, self.log = name, iter(seconds), log

    def __call__(self, calls: int) -> float:
        self.log.append((self.name, calls))
        return next(self.seconds)


def test_every_round_has_one_turn_of_each_and_the_order_changes() -> None:
    log: list[tuple[str, int]] = []
    turns = {
        "fast": Runner("fast", [0.001, 1.0, 2.0, 3.0, 4.0], log),
        "slow": Runner("slow", [0.5, 5.0, 6.0, 7.0, 8.0], log),
        "middle": Runner("middle", [0.01, 9.0, 9.0, 9.0, 9.0], log),
    }
    laps = race(turns, rounds=4, target_s=0.03)
    assert log[:3] == [(name, TRIAL_CALLS) for name in turns]
    assert {name: lap.calls for name, lap in laps.items()} == {"fast": 30, "slow": 1, "middle": 3}
    assert laps["fast"].seconds == (1.0, 2.0, 3.0, 4.0) and laps["slow"].seconds == (5.0, 6.0, 7.0, 8.0)
    rounds = [[name for name, _ in log[3 + 3 * i : 6 + 3 * i]] for i in range(4)]
    firsts = ["fast", "middle", "slow", "fast"]
    assert [names[0] for names in rounds] == firsts and all(sorted(names) == sorted(turns) for names in rounds)


@pytest.mark.parametrize("threads", [1, 2])
def test_calls_go_round_the_copies_across_turns(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now_s, used = 0.0, []
    clocks: list[int] = []

    def copy(number: int) -> Callable[[torch.Tensor], torch.Tensor]:
        def product(x: torch.Tensor) -> torch.Tensor:
            nonlocal now_s
            assert torch.is_inference_mode_enabled()
            now_s += 0.5
            used.append(number)
            return x

        return product

    def clock(threads: int) -> Callable[[], float]:
        clocks.append(threads)
        return lambda: now_s

    monkeypatch.setattr(module, "clock", clock)
    contender = Contender("a", "a", 1, tuple(map(copy, range(3))), (), torch.empty(0))
    turn = cpu_turn(contender, torch.empty(1), threads)
    assert [turn(2), turn(2), turn(1)] == [0.5] * 3
    assert used == [0, 1, 2, 0, 1] and clocks == [threads]


def test_a_turn_on_a_gpu_replays_whole_rings(monkeypatch: pytest.MonkeyPatch) -> None:
    replayed: list[int] = []

    class Graph:
        def replay(self) -> None:
            """Take no time."""

    def seconds(work: Callable[[], object], times: int = 1) -> float:
        replayed.append(times)
        return 0.6  # of one replay

    monkeypatch.setattr(cuda, "_captured", lambda contender, x: Graph())
    monkeypatch.setattr(cuda, "_seconds", seconds)
    contender = Contender("a", "a", 1, (torch.abs, torch.abs, torch.abs), (), torch.empty(0))
    turn = cuda.turn(contender, torch.empty(1))
    assert [turn(calls) for calls in (1, 3, 4, 9)] == [pytest.approx(0.2)] * 4
    assert replayed == [1, 1, 2, 3]
