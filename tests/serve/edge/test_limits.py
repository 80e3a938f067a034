"""What one key may ask for in a minute."""

import asyncio
import json
import socket
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofour.serve.edge.auth import digest
from twofour.serve.edge.errors import RequestError
from twofour.serve.edge.harden import EdgeConfig
from twofour.serve.edge.limits import Allowance, Limits, Settle, reserve
from twofour.serve.openai.answers.answer import Answer

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


def test_it_fills_to_a_minutes_worth_and_no_further() -> None:
    clock = Clock()
    allowance = Allowance(60, clock)
    allowance.take(50)
    clock.now = 45
    allowance.give_back(50)
    allowance.take(60)
    assert allowance.wait_s() == pytest.approx(1)


def test_a_request_waits_for_all_that_it_may_use() -> None:
    clock = Clock()
    allowance = Allowance(60, clock)
    settle = reserve(allowance, 40)
    with pytest.raises(RequestError, match=r"try again in 20 s, or ask for fewer \(max_tokens\)") as refused:
        reserve(allowance, 40)
    assert refused.value.status == 429
    settle(15)
    reserve(allowance, 45)
    clock.now = 60
    reserve(allowance, 1000)  # more than there can be: it needs all of it
    assert allowance.wait_s(1000) == pytest.approx(60 + (1000 - 60))


REQUESTS = st.tuples(st.floats(0, 30), st.integers(1, 90), st.floats(0, 1), st.integers(0, 6))


@given(st.lists(REQUESTS, max_size=30))
def test_never_more_than_was_filled_in(requests: list[tuple[float, int, float, int]]) -> None:
    """However many run at a time: what is used up to any moment is a minute's worth, the inflow, and what one request
    may use beyond a minute's worth. Each is admitted or refused, and runs while some others come and go."""
    clock, used = Clock(), 0
    allowance, running = Allowance(30, clock), list[tuple[Settle, int]]()
    for pause_s, most, share, others in requests:
        clock.now += pause_s
        with suppress(RequestError):
            running.append((reserve(allowance, most), round(most * share)))
            used += running[-1][1]  # at once, the worst that it can do
        while len(running) > others:
            settle, amount = running.pop(0)
            settle(amount)
        assert used <= 30 + clock.now / 2 + (90 - 30)


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
    limited(ask(server, "first", max_tokens=14, stream=stream), "tokens")
    assert ask(server, "first", max_tokens=1).status_code == 200
    assert ask(server, "second", max_tokens=14).status_code == 200


def test_streams_side_by_side_cannot_overdraw(launch: Any) -> None:
    """Each may use 50 of 130: two fit. The first leaves when it has used 22 at most, and another one fits."""
    server = launch(launch.engine(hold_after=10), edge=EdgeConfig(api_keys=KEYS, limits=Limits(tokens_per_minute=130)))
    body = {"model": "m", "prompt": "hi", "max_tokens": 24, "n": 2, "stream": True}

    def begin() -> Any:
        request = server.client.stream("POST", "/v1/completions", json=body, headers={"Authorization": "Bearer first"})
        return stack.enter_context(request)

    with ExitStack() as stack:
        first, second = begin(), begin()
        assert (first.status_code, second.status_code) == (200, 200)
        limited(ask(server, "first", max_tokens=24, n=2), "tokens")
        first.close()
        server.eventually(lambda: server.lifecycle.in_flight == 1)
        assert begin().status_code == 200


def test_what_is_made_and_not_taken_counts(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that stops reading, and leaves when its answer is complete: 2 tokens of a prompt and 40."""

    async def stuck(*of_the_answer: Any) -> None:
        await asyncio.Event().wait()

    server = launch(launch.engine("x" * 40), edge=EdgeConfig(api_keys=KEYS, limits=Limits(tokens_per_minute=100)))
    body = json.dumps({"model": "m", "prompt": "hi", "max_tokens": 40, "stream": True})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: {len(body)}\r\nAuthorization: Bearer first\r\n"
    with monkeypatch.context() as patch, socket.create_connection(server.address, timeout=10) as connection:
        patch.setattr(Answer, "_write", stuck)
        connection.sendall(f"{head}Content-Type: application/json\r\n\r\n{body}".encode())
        server.engine.ended.get(timeout=10)
    server.eventually(lambda: server.lifecycle.in_flight == 0)
    limited(ask(server, "first", max_tokens=80), "tokens")
    assert ask(server, "first", max_tokens=50).status_code == 200


def test_refused_requests_cost_no_tokens(launch: Any) -> None:
    server = launch(edge=EdgeConfig(api_keys=KEYS, limits=Limits(tokens_per_minute=10)))
    assert [ask(server, "first", prompt="x" * 300).status_code for _ in range(3)] == [400] * 3
    assert ask(server, "first", max_tokens=1).status_code == 200


def test_off_unless_asked_for(shared: Any) -> None:
    assert {shared.complete().status_code for _ in range(70)} == {200}
