"""What one key may ask for in a minute."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofour.serve.edge.auth import digest
from twofour.serve.edge.harden import EdgeConfig
from twofour.serve.edge.limits import Allowance, Limits

KEYS = (digest(b"first"), digest(b"second"))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_minute_of_requests_then_one_each_second() -> None:
    clock = Clock()
    allowance = Allowance(60, clock)
    for _ in range(60):
        assert allowance.wait_s() == 0
        allowance.take(1)
    assert allowance.wait_s() == pytest.approx(1)
    clock.now = 0.5
    assert allowance.wait_s() == pytest.approx(0.5)
    clock.now = 1.01
    assert allowance.wait_s() == 0


def test_what_was_overdrawn_has_to_come_back_first() -> None:
    clock = Clock()
    allowance = Allowance(600, clock)
    allowance.take(1600)
    assert allowance.wait_s() == pytest.approx((1000 + 1) / 10)
    clock.now = 100.2
    assert allowance.wait_s() == 0


@given(st.lists(st.tuples(st.floats(0, 30), st.integers(0, 50)), max_size=30))
def test_never_more_than_was_filled_in(steps: list[tuple[float, int]]) -> None:
    """What is taken while allowed stays within a minute's worth, the inflow and one last draught."""
    clock, taken = Clock(), 0
    allowance = Allowance(30, clock)
    for pause_s, amount in steps:
        clock.now += pause_s
        if allowance.wait_s() == 0:
            taken += amount
            allowance.take(amount)
    assert taken <= 30 + clock.now * 30 / 60 + 50


def ask(server: Any, key: str, **fields: Any) -> Any:
    headers = {"Authorization": f"Bearer {key}"}
    return server.client.post("/v1/completions", headers=headers, json={"model": "m", "prompt": "hi", **fields})


def limited(answer: Any, unit: str) -> None:
    assert answer.status_code == 429
    error = answer.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("rate_limit_error", "rate_limit_exceeded", None)
    assert unit in error["message"]
    assert 1 <= int(answer.headers["retry-after"]) <= 60


def test_requests_of_each_key(launch: Any) -> None:
    server = launch(edge=EdgeConfig(api_keys=KEYS, limits=Limits(requests_per_minute=2)))
    assert [ask(server, "first").status_code for _ in range(2)] == [200, 200]
    limited(ask(server, "first"), "requests")
    assert ask(server, "second").status_code == 200
    assert server.client.get("/v1/models", headers={"Authorization": "Bearer first"}).status_code == 200
    server.eventually(lambda: server.metric('twofour:rejected_requests_total{reason="rate_limit_exceeded"') == 1)


@pytest.mark.parametrize("stream", [False, True])
def test_tokens_of_prompts_and_answers(launch: Any, stream: bool) -> None:
    """16 at a time, 2 of them the prompt's."""
    server = launch(edge=EdgeConfig(api_keys=KEYS, limits=Limits(tokens_per_minute=20)))
    assert ask(server, "first", max_tokens=14, stream=stream).status_code == 200
    assert ask(server, "first", max_tokens=14, stream=stream).status_code == 200
    limited(ask(server, "first", max_tokens=1), "tokens")
    assert ask(server, "second", max_tokens=1).status_code == 200


def test_refused_requests_cost_no_tokens(launch: Any) -> None:
    server = launch(edge=EdgeConfig(api_keys=KEYS, limits=Limits(tokens_per_minute=10)))
    assert [ask(server, "first", prompt="x" * 300).status_code for _ in range(3)] == [400] * 3
    assert ask(server, "first", max_tokens=1).status_code == 200


def test_off_unless_asked_for(shared: Any) -> None:
    assert {shared.complete().status_code for _ in range(70)} == {200}
