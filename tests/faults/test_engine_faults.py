"""Faults 1, 3, 4 and 24: the engine process is killed and stopped, and steps fail and give NaN.

The numbers are those of the project's table of faults; so are the pass rules.
"""

import os
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

Server = Any
Eventually = Callable[[Callable[[], bool], float], None]
EXCEPTION, NAN = [300, 301], [302, 303]  # hurt_child.py


def text_of(documents: list[Any]) -> str:
    return "".join(choice["text"] for document in documents for choice in document["choices"])


def test_fault_01_the_engine_is_killed_within_streams(server: Server, eventually: Eventually) -> None:
    restarts = server.metric("twofour:engine_restarts_total")
    with server.stream() as one, server.stream(n=2) as other:
        os.kill(server.engine_pid(), signal.SIGKILL)
        eventually(lambda: server.get("/health").status_code == 503, 2)
        refused = server.complete(prompt="hi")
        assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
        for stream in (one, other):
            documents = stream.rest()
            assert documents[-1]["error"]["type"] == "server_error"
            assert not any(choice["finish_reason"] for d in documents[:-1] for choice in d["choices"])
    eventually(lambda: server.get("/health").status_code == 200, 5)
    eventually(server.ready, 60)
    assert server.metric("twofour:engine_restarts_total") == restarts + 1
    server.whole()


@pytest.mark.slow
def test_fault_01_a_whole_answer_under_way_gets_503(server: Server, eventually: Eventually) -> None:
    with ThreadPoolExecutor() as pool:
        asked = pool.submit(server.complete, **{"max_tokens": 4000, "ignore_eos": True, "prompt": "a"})
        eventually(lambda: server.metric("vllm:num_requests_running") == 1, 5)
        os.kill(server.engine_pid(), signal.SIGKILL)
        answer = asked.result()
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    assert answer.json()["error"]["code"] == "not_ready"
    eventually(server.ready, 60)
    server.whole()


def test_fault_03_a_stall_that_ends_repeats_nothing(server: Server, eventually: Eventually) -> None:
    whole = server.complete(prompt="There was", max_tokens=600, temperature=0, ignore_eos=True)
    with server.stream(prompt="There was", max_tokens=600) as stream:
        pid = server.engine_pid()
        os.kill(pid, signal.SIGSTOP)
        eventually(lambda: server.metric("twofour:engine_heartbeat_age_seconds") > 1, 5)
        assert server.get("/health").status_code == 200
        os.kill(pid, signal.SIGCONT)
        documents = stream.rest()
    assert text_of(documents) == whole.json()["choices"][0]["text"]
    assert server.engine_pid() == pid
    server.whole()


@pytest.mark.slow
def test_fault_03_a_stall_without_end_is_a_death(server: Server, eventually: Eventually) -> None:
    restarts = server.metric("twofour:engine_restarts_total")
    with server.stream() as stream:
        os.kill(server.engine_pid(), signal.SIGSTOP)
        assert stream.rest()[-1]["error"]["code"] == "not_ready"
    eventually(server.ready, 60)
    assert server.metric("twofour:engine_restarts_total") == restarts + 1
    server.whole()


def test_fault_04_an_exception_in_forward(server: Server) -> None:
    """The neighbours of the request whose prompt makes the forward fail go on as if they were alone."""
    with server.stream(max_tokens=900) as neighbour:
        answer = server.complete(prompt=[50, *EXCEPTION])
        assert (answer.status_code, answer.json()["error"]["type"]) == (500, "server_error")
        assert "secret" not in answer.text
        documents = neighbour.rest()
    assert documents[-1]["choices"][0]["finish_reason"] == "length"
    alone = server.complete(prompt="There was a long story", max_tokens=900, temperature=0, ignore_eos=True)
    assert text_of(documents) == alone.json()["choices"][0]["text"]
    server.whole()


def test_fault_24_logits_that_are_not_finite(server: Server) -> None:
    before = server.metric("twofour:not_finite_logits_total")
    with server.stream(max_tokens=900) as neighbour:
        answer = server.complete(prompt=[50, *NAN])
        assert (answer.status_code, answer.json()["error"]["code"]) == (500, "non_finite")
        assert neighbour.rest()[-1]["choices"][0]["finish_reason"] == "length"
    assert server.metric("twofour:not_finite_logits_total") == before + 1
    server.whole()
