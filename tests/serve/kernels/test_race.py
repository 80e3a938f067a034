import dataclasses
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from twofour.serve.kernels import race
from twofour.serve.kernels.race import ALWAYS, PREFERENCE, TRAFFIC, Failed, Result


def brute_force(result: Result) -> int:
    """Every crossover tried, the many's times raised by the preference; the largest of the best."""
    totals = {}
    for bound in (0, *result.few):
        total = 0.0
        for tokens in result.few:
            is_few = tokens <= bound
            total += TRAFFIC[tokens] * (result.few[tokens] if is_few else result.many[tokens] * PREFERENCE)
        totals[bound] = total
    best = min(totals.values())
    return max(bound for bound, total in totals.items() if math.isclose(total, best, rel_tol=1e-12))


@pytest.mark.parametrize("seed", range(20))
def test_the_crossover_is_the_best_of_all(seed: int) -> None:
    torch.manual_seed(seed)
    few, many = (dict(zip(TRAFFIC, torch.rand(len(TRAFFIC)).tolist(), strict=True)) for _ in range(2))
    result, expected = Result(few, many), brute_force(Result(few, many))
    assert result.crossover_tokens() == (ALWAYS if expected == max(TRAFFIC) else expected)


def test_a_path_that_always_wins_takes_all_and_one_that_never_does_takes_none() -> None:
    ones, twos = dict.fromkeys(TRAFFIC, 1.0), dict.fromkeys(TRAFFIC, 2.0)
    assert Result(ones, twos).crossover_tokens() == ALWAYS
    assert Result(twos, ones).crossover_tokens() == 0
    assert Result(ones, twos).total() == pytest.approx(1.0) and Result(twos, ones).total() == pytest.approx(1.0)


def test_a_small_advantage_of_the_path_for_many_is_taken_for_noise() -> None:
    ones, slightly_less = dict.fromkeys(TRAFFIC, 1.0), dict.fromkeys(TRAFFIC, 0.995)
    assert Result(ones, slightly_less).crossover_tokens() == ALWAYS


def test_a_race_that_ended_early_says_nothing_about_more_tokens() -> None:
    few, many = {1: 1.0, 2: 1.0, 4: 1.0}, {1: 2.0, 2: 2.0, 4: 2.0}
    assert Result(few, many).crossover_tokens() == 4


def test_the_traffic_adds_up() -> None:
    assert math.fsum(TRAFFIC.values()) == pytest.approx(1)


@dataclass(frozen=True)
class Scripted:
    """Costs what its script says of the path and the tokens, on a clock that only it moves."""

    clock: list[float]
    cost: float  # of the path for few, each token; the path for many costs 8 and then half of it
    crossover_tokens: int = ALWAYS
    calls: list[tuple[bool, int]] = field(default_factory=list)
    weight: Tensor = field(default_factory=lambda: torch.zeros(1 << 20))
    name: ClassVar[str] = "scripted"

    @property
    def nbytes(self) -> int:
        return self.weight.nbytes

    def __deepcopy__(self, memo: object) -> "Scripted":
        return self

    def __call__(self, x: Tensor, bias: Tensor | None) -> None:
        few = len(x) <= self.crossover_tokens
        self.calls.append((few, len(x)))
        self.clock[0] += len(x) * self.cost if few else 8 + len(x) * self.cost / 2


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    now = [0.0]
    monkeypatch.setattr(race.time, "thread_time", lambda: now[0])
    monkeypatch.setattr(race.time, "perf_counter", lambda: now[0])
    yield now


def test_a_race_measures_every_path_in_every_bucket(clock: list[float]) -> None:
    quick, slow = Scripted(clock, 1.0), Scripted(clock, 3.0)
    found = race.race({"quick": quick, "slow": slow}, 64, torch.device("cpu"), torch.float32, most_tokens=64)
    assert found["quick"].few == {tokens: tokens for tokens in TRAFFIC if tokens <= 64}
    assert found["slow"].many == {tokens: 8 + 1.5 * tokens for tokens in TRAFFIC if tokens <= 64}
    assert found["quick"].crossover_tokens() == 16  # 8 + n / 2 is less than n from 32 tokens on
    assert {(few, 64) for few in (True, False)} <= set(quick.calls)


def test_the_order_of_a_round_alternates(clock: list[float]) -> None:
    calls: list[tuple[bool, int]] = []
    forms = {"a": Scripted(clock, 1.0, calls=calls), "b": Scripted(clock, 1.0, calls=calls)}
    race.race(forms, 64, torch.device("cpu"), torch.float32, most_tokens=1)
    few = [few for few, _ in calls[4:]]  # the first call of each way is not counted
    assert few[:8] == [False, True, False, True, True, False, True, False]


def of_rounds(rounds: list[float]) -> Result:
    def constant(seconds: float) -> Result:
        return Result(dict.fromkeys(TRAFFIC, seconds), dict.fromkeys(TRAFFIC, 2 * seconds))

    return dataclasses.replace(constant(race._low(rounds)), rounds=tuple(map(constant, rounds)))


@pytest.mark.parametrize(
    ("dense", "sparse", "beats"),
    [
        ([0.9] * 10, [1.0] * 10, True),
        ([0.98] * 10, [1.0] * 10, False),  # by less than the hysteresis
        ([0.9] * 9 + [1.1], [1.0] * 10, True),
        ([0.9] * 8 + [1.1] * 2, [1.0] * 10, False),  # fewer than nearly all
        ([0.9] * 10, [1.0] * 5 + [0.9] * 5, False),  # disturbed in half of the rounds
        ([0.9, 15.9] * 5, [1.0, 15.9] * 5, False),
    ],
)
def test_what_beats_clearly_does_so_in_nearly_all_rounds(dense: list[float], sparse: list[float], beats: bool) -> None:
    assert of_rounds(dense).clearly_beats(of_rounds(sparse)) is beats


def test_what_only_disturbs_some_rounds_does_not_count(clock: list[float], monkeypatch: pytest.MonkeyPatch) -> None:
    jumps = itertools.cycle([0.0, 0.0, 0.0, 1000.0])
    quick = Scripted(clock, 1.0)

    def disturbed(turns: Any) -> Any:
        return {key: [turn() + next(jumps) for _ in range(20)] for key, turn in turns.items()}

    monkeypatch.setattr(race, "_take_turns", disturbed)
    found = race.race({"quick": quick}, 64, torch.device("cpu"), torch.float32, most_tokens=4)
    assert found["quick"].few == {1: 1.0, 2: 2.0, 4: 4.0} and len(found["quick"].rounds) == 20


@dataclass(frozen=True)
class Broken(Scripted):
    """Multiplies a few tokens, and more of them not."""

    def __call__(self, x: Tensor, bias: Tensor | None) -> None:
        if len(x) > 4:
            raise RuntimeError("out of resources")


def test_a_form_that_cannot_take_part_ends_the_race_by_its_name(clock: list[float]) -> None:
    forms = {"good": Scripted(clock, 1.0), "bad": Broken(clock, 1.0)}
    with pytest.raises(Failed) as failed:
        race.race(forms, 64, torch.device("cpu"), torch.float32)
    assert failed.value.form == "bad" and str(failed.value.cause) == "out of resources"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_activations_have_the_dtype_that_was_asked_for(clock: list[float], dtype: torch.dtype) -> None:
    seen: set[torch.dtype] = set()

    @dataclass(frozen=True)
    class Noting(Scripted):
        def __call__(self, x: Tensor, bias: Tensor | None) -> None:
            seen.add(x.dtype)
            super().__call__(x, bias)

    race.race({"noting": Noting(clock, 1.0)}, 64, torch.device("cpu"), dtype, most_tokens=2)
    assert seen == {dtype}
