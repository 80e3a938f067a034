"""The verdict on scripted seconds: a cell fails on the upper end of its interval, a model on its weighted ratio."""

import math
from typing import Any

import pytest

from twofour.bench.kernels import never_slower as module
from twofour.bench.kernels.never_slower import TRAFFIC, never_slower, weighted_ratio

NAME = "torch bf16 / served"


def cell(tokens: int, point: float, high: float) -> dict[str, Any]:
    contenders = {"served": {"kernel": "cpu"}, "torch bf16": {"kernel": "F.linear"}}
    ratio = {"point": point, "low": point / (high / point), "high": high, "n": 7}
    where = {"part": "linear", "rows": 8, "columns": 4, "tokens": tokens}
    return where | {"contenders": contenders, "ratios": {NAME: ratio}}


def model_sum(tokens: int, torch: list[float], served: list[float], model: str = "a") -> dict[str, Any]:
    contenders = {"torch bf16": {"seconds": torch}, "served": {"seconds": served}}
    return {"model": model, "tokens": tokens, "contenders": contenders}


@pytest.mark.parametrize(
    ("tokens", "high", "fails"),
    [
        *((1, 0.979, True), (1, 0.98, False), (64, 0.979, True), (64, 0.981, False)),
        *((65, 0.979, False), (65, 0.949, True), (512, 0.95, False), (512, 0.9, True)),
    ],
)
def test_the_limit_of_a_cell_depends_on_its_tokens(tokens: int, high: float, fails: bool) -> None:
    judged = never_slower([cell(tokens, high * 0.9, high)], [], 0)
    assert judged["passed"] is not fails and len(judged["failures"]) == fails


def test_a_noisy_cell_below_the_limit_does_not_fail() -> None:
    assert never_slower([cell(1, 0.7, 0.99)], [], 0)["passed"] is True


def test_every_failing_cell_is_listed_with_its_limit() -> None:
    cells = [cell(1, 0.5, 0.6), cell(8, 2.0, 2.1), cell(128, 0.8, 0.9)]
    judged = never_slower(cells, [], 0)
    assert [(each["tokens"], each["limit"], each["ratio"]["high"]) for each in judged["failures"]] == [
        (1, 0.98, 0.6),
        (128, 0.95, 0.9),
    ]
    assert judged["judged"] == 3 and judged["passed"] is False


def test_lm_head_without_a_served_contender_is_not_judged() -> None:
    head = cell(1, 0.5, 0.6)
    del head["contenders"]["served"], head["ratios"][NAME]
    assert never_slower([head], [], 0)["passed"] is None
    assert never_slower([head, cell(1, 1.0, 1.1)], [], 0)["judged"] == 1


def test_the_histogram_is_one_of_calls_most_of_them_decoding() -> None:
    assert sum(TRAFFIC.values()) == pytest.approx(1)
    assert sum(share for tokens, share in TRAFFIC.items() if tokens <= 32) > 0.85
    assert never_slower([], [], 0)["histogram"] == {str(tokens): share for tokens, share in TRAFFIC.items()}


def test_the_weighted_ratio_is_that_of_the_time_of_a_mean_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "TRAFFIC", {1: 0.75, 512: 0.25})
    torch, served = {1: [2.0, 4.0], 512: [8.0, 8.0], 3: [9.0, 9.0]}, {1: [1.0, 1.0], 512: [9.0, 1.0], 3: [1.0, 1.0]}
    found = weighted_ratio(torch, served, 0)
    assert found is not None
    first = (0.75 * 2 + 0.25 * 8) / (0.75 * 1 + 0.25 * 9)
    second = (0.75 * 4 + 0.25 * 8) / (0.75 * 1 + 0.25 * 1)
    assert found[0].point == pytest.approx(math.sqrt(first * second))
    assert found[1] == 1.0
    only = weighted_ratio({1: [2.0, 2.0]}, {1: [1.0, 1.0]}, 0)
    assert only is not None and only[0].point == pytest.approx(2) and only[1] == 0.75
    assert weighted_ratio({3: [2.0, 2.0]}, {3: [1.0, 1.0]}, 0) is None


@pytest.mark.parametrize(("decode_s", "passed"), [(0.05, True), (0.9, False)])
def test_slow_prompts_must_be_paid_for_by_fast_decoding(decode_s: float, passed: bool) -> None:
    cells = [cell(1, 1 / decode_s, 1 / decode_s), cell(512, 0.96, 0.97)]
    sums = [model_sum(1, [1.0, 1.0], [decode_s, decode_s]), model_sum(512, [10.0, 10.0], [15.0, 15.0])]
    judged = never_slower(cells, sums, 0)
    assert judged["failures"] == []  # no cell is slower by more than its limit
    few, many = TRAFFIC[1], TRAFFIC[512]
    point = (few * 1 + many * 10) / (few * decode_s + many * 15)
    assert judged["weighted"][0]["ratio"]["point"] == pytest.approx(point)
    assert (point >= 1) is passed is judged["weighted"][0]["passed"] is judged["passed"]


def test_each_model_is_weighted_by_itself() -> None:
    sums = [
        model_sum(1, [2.0] * 2, [1.0] * 2, "a"),
        model_sum(1, [1.0] * 2, [2.0] * 2, "b"),
        model_sum(3, [1.0], [1.0], "c"),
    ]
    weighted = {each["model"]: each["passed"] for each in never_slower([cell(1, 1.0, 1.1)], sums, 0)["weighted"]}
    assert weighted == {"a": True, "b": False, "c": None}
