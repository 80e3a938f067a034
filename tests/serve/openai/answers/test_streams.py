"""How answers end: the client leaves, the engine fails, the time is over, the server stops."""

import asyncio
import contextlib
import json
import select
import socket
import threading
from types import SimpleNamespace
from typing import Any

import pytest
from asking import ask, read_all, send_request

from twofour.serve.edge.errors import timed_out
from twofour.serve.engine.types import Failure
from twofour.serve.http import connections
from twofour.serve.openai.answers import dumps, streams
from twofour.serve.openai.answers.answer import Answer
from twofour.serve.openai.completions import prepare
from twofour.serve.openai.protocol import CompletionRequest
from twofour.serve.openai.serving import Caller


def documents(text: str) -> list[Any]:
    lines = [line.removeprefix("data: ") for line in text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def test_a_silent_stream_says_that_it_is_alive(launch: Any) -> None:
    """From the moment of admission on, in comments that are no events."""
    server = launch(launch.engine(hold_after=0), keep_alive_s=0.05)
    with ask(server, stream=True) as connection:
        received = b""
        while received.count(b": keep-alive\n\n") < 2:
            received += connection.recv(65536)
        assert received.startswith(b"HTTP/1.1 200") and b"data: " not in received
        server.engine.release()
        while data := connection.recv(65536):
            received += data
    assert received.count(b'"finish_reason":"stop"') == 1 and b"data: [DONE]\n\n" in received
    server.control()


def test_a_busy_stream_says_nothing_else(launch: Any) -> None:
    assert "keep-alive" not in launch(keep_alive_s=5).complete(stream=True).text


def test_an_error_after_a_sign_of_life_is_an_event(launch: Any) -> None:
    server = launch(launch.engine(hold_after=0, fail_after=0), keep_alive_s=0.05)
    with ask(server, stream=True) as connection:
        received = b""
        while b": keep-alive" not in received:
            received += connection.recv(65536)
        server.engine.release()
        while data := connection.recv(65536):
            received += data
    assert b'"error"' in received and b"data: [DONE]\n\n" in received


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_leaves_ends_its_sequences(launch: Any, stream: bool, n: int) -> None:
    server = launch(launch.engine(hold_after=3))
    connection = ask(server, stream=stream, n=n)
    for _ in range(n):
        server.engine.started.get(timeout=5)
    connection.close()
    assert [server.engine.ended.get(timeout=5) for _ in range(n)] == ["cancelled"] * n
    server.eventually(lambda: server.lifecycle.in_flight == 0)
    assert server.engine.open == 0
    assert server.metric('vllm:request_success_total{engine="0",finished_reason="abort"') == n
    assert server.metric("twofour:rejected_requests_total") == 0
    server.engine.release()
    server.control()


def test_a_client_that_leaves_before_the_first_token(launch: Any) -> None:
    server = launch(launch.engine(hold_after=0))
    connection = ask(server, stream=True)
    server.engine.started.get(timeout=5)
    connection.close()
    assert server.engine.ended.get(timeout=5) == "cancelled"


def test_a_failing_sequence_is_an_answer_before_the_first_token(launch: Any) -> None:
    server = launch(launch.engine(fail_after=0))
    for stream in (True, False):
        answer = server.complete(stream=stream)
        error = answer.json()["error"]
        assert (answer.status_code, error["type"], error["code"]) == (500, "server_error", None)
        assert answer.headers["x-request-id"] in error["message"]
        assert "secret" not in answer.text
    server.engine.fail_after = None
    server.control()


def test_a_failing_sequence_is_an_event_after_it(launch: Any) -> None:
    server = launch(launch.engine(fail_after=3))
    answer = server.complete(stream=True)
    said = documents(answer.text)
    assert answer.status_code == 200
    assert set(said[-1]["error"]) == {"message", "type", "param", "code"}
    assert said[-1]["error"]["type"] == "server_error"
    assert "secret" not in answer.text
    server.engine.fail_after = None
    server.control()


def test_logits_that_are_not_finite_have_a_code(launch: Any, refused: Any) -> None:
    server = launch(launch.engine(fail_after=0, failure=Failure.NOT_FINITE))
    answer = server.complete()
    refused(answer, 500, "non_finite")
    assert answer.headers["x-should-retry"] == "false"
    server.engine.fail_after = 2
    assert documents(server.complete(stream=True).text)[-1]["error"]["code"] == "non_finite"
    server.engine.fail_after = None
    server.control()


def test_the_engine_dies_during_a_stream(launch: Any) -> None:
    server = launch(launch.engine(hold_after=3))
    connection = ask(server, stream=True)
    server.engine.started.get(timeout=5)
    server.engine.die()
    text = read_all(connection)
    assert '"code": "not_ready"' in text
    assert "[DONE]" in text
    assert "secret" not in text
    assert server.client.get("/health").json()["error"]["code"] == "engine_dead"
    refused = server.complete()
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")


def test_a_sequence_without_an_end_is_an_error(launch: Any) -> None:
    server = launch(launch.engine(leave_after=2))
    assert server.complete().status_code == 503
    assert "error" in documents(server.complete(stream=True).text)[-1]


def test_the_deadline_ends_an_answer_and_a_stream(launch: Any) -> None:
    server = launch(launch.engine(hold_after=2), deadline_s=0.2)
    answer = server.complete()
    assert (answer.status_code, answer.json()["error"]["code"]) == (504, "timeout")
    assert answer.headers["x-should-retry"] == "false"
    streamed = documents(server.complete(stream=True).text)
    assert streamed[-1]["error"]["code"] == "timeout"
    assert [server.engine.ended.get(timeout=5) for _ in range(2)] == ["cancelled"] * 2


UNREAD: dict[str, Any] = {"prompt": ["a"] * 10, "max_tokens": 250, "logprobs": 20}  # 700 KB; the system keeps 200 KB


def not_reading(server: Any, **fields: Any) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(server.address)
    send_request(connection, **UNREAD, **fields)
    return connection


def test_a_client_that_does_not_read_is_cut_off(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its sequences end, its connection too, and what was written for it is not kept."""
    monkeypatch.setattr(connections, "UNREAD_S", 0.2)
    engine = launch.engine(reply="word " * 100)
    server = launch(engine, stream_stall_s=0.2)
    with not_reading(server, stream=True) as connection:
        server.eventually(lambda: server.metric("twofour:stalled_streams_total") == 1)
        server.eventually(lambda: engine.open == 0)
        assert read_until_cut(connection) < 1 << 16
    assert server.client.get("/health").status_code == 200


def test_last_words_that_nobody_reads_are_given_up() -> None:
    counted = list[int]()
    metrics = SimpleNamespace(stalled_streams=SimpleNamespace(inc=lambda: counted.append(1)))
    serving: Any = SimpleNamespace(config=SimpleNamespace(stream_stall_s=0.01), metrics=metrics)
    answer = Answer[CompletionRequest](serving, Caller("id", 0), CompletionRequest, prepare)

    async def never(message: Any) -> None:
        await asyncio.Event().wait()

    asyncio.run(answer._end_with_error(never, timed_out(1)))
    assert counted == [1]


@pytest.mark.parametrize(("logprobs", "elsewhere"), [(None, False), (5, True)])
def test_a_large_answer_is_written_off_the_event_loop(
    launch: Any, monkeypatch: pytest.MonkeyPatch, logprobs: int | None, elsewhere: bool
) -> None:
    server, threads = launch(launch.engine(reply="word " * 20)), list[threading.Thread]()
    once = dumps.text
    for module in (dumps, streams):
        monkeypatch.setattr(module, "text", lambda value: (threads.append(threading.current_thread()), once(value))[1])
    answer = server.complete(max_tokens=100, logprobs=logprobs)
    assert answer.status_code == 200 and threads
    loop = asyncio.run_coroutine_threadsafe(current_thread(), server.loop).result(5)
    assert {thread is not loop for thread in threads} == {elsewhere}


async def current_thread() -> threading.Thread:
    return threading.current_thread()


def test_a_whole_answer_that_nobody_reads_is_not_kept(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "UNREAD_S", 0.2)
    server = launch(launch.engine(reply="word " * 100))
    with not_reading(server) as connection:
        server.eventually(lambda: server.metric("vllm:request_generation_tokens_count") == 10)
        assert read_until_cut(connection) < 1 << 16


def read_until_cut(connection: socket.socket) -> int:
    """How many bytes are left to read when the server has ended the connection; it fails where the server does not."""
    end = select.poll()
    end.register(connection, select.POLLHUP | select.POLLERR)
    assert end.poll(30_000), "the connection is still there"
    received = 0
    with contextlib.suppress(ConnectionResetError):
        while data := connection.recv(65536):
            received += len(data)
    return received


def test_a_whole_answer_larger_than_all_buffers(launch: Any) -> None:
    """Written while it is read, and to its end although the connection is closed after it."""
    server = launch(launch.engine(reply="word " * 100))
    with not_reading(server) as connection:
        server.eventually(lambda: server.metric("vllm:request_generation_tokens_count") == 10)
        received = b""
        while data := connection.recv(65536):
            received += data
    choices = json.loads(received.partition(b"\r\n\r\n")[2])["choices"]
    assert [len(choice["logprobs"]["tokens"]) for choice in choices] == [250] * 10


def test_one_sequence_at_its_stop_string_leaves_the_others_alone(launch: Any) -> None:
    engine = launch.engine(hold_after=3)
    texts = {1: "ab|cd", 2: "abcd"}
    engine.script = lambda prompt: launch.ids(texts[len(prompt.tokens)])
    connection = ask(launch(engine), prompt=["x", "xy"], stop="|")
    assert engine.ended.get(timeout=5) == "cancelled"
    engine.release()
    assert engine.ended.get(timeout=5) == "stop"
    body = json.loads(read_all(connection).partition("\r\n\r\n")[2])
    assert [choice["text"] for choice in body["choices"]] == ["ab", "abcd"]


def test_streams_finish_while_draining_and_new_requests_are_refused(launch: Any) -> None:
    server = launch(launch.engine(hold_after=2))
    connection = ask(server, stream=True)
    server.engine.started.get(timeout=5)
    drained = in_loop(server, server.lifecycle.drain(30))
    server.eventually(lambda: server.lifecycle.draining)
    assert server.client.get("/health").status_code == 200
    assert server.client.get("/ready").json()["error"]["code"] == "not_ready"
    refused = server.complete()
    assert (refused.status_code, refused.headers["connection"]) == (503, "close")
    assert refused.headers["retry-after"] == "1"
    assert server.metric("twofour:draining") == 1
    server.engine.release()
    text = read_all(connection)
    assert '"finish_reason":"stop"' in text
    drained.result(timeout=5)
    assert not server.lifecycle.expired.is_set()


@pytest.mark.parametrize("stream", [True, False])
def test_what_outlasts_the_drain_is_told_so(launch: Any, stream: bool) -> None:
    server = launch(launch.engine(hold_after=2))
    connection = ask(server, stream=stream)
    server.engine.started.get(timeout=5)
    in_loop(server, server.lifecycle.drain(0.05)).result(timeout=5)
    text = read_all(connection)
    assert '"code": "not_ready"' in text
    assert ("200 OK" in text) == stream
    assert server.engine.ended.get(timeout=5) == "cancelled"


def in_loop(server: Any, work: Any) -> Any:
    return asyncio.run_coroutine_threadsafe(work, server.loop)
