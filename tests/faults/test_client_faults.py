"""Faults 12 to 18 and 30: clients that leave, crawl, flood and lie. The numbers are those of the table of faults."""

import contextlib
import json
import random
import selectors
import socket
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import Any

import pytest

from twofour.serve.edge.bodies import LARGEST_AT_A_TIME
from twofour.serve.edge.harden import EdgeConfig

Server = Any
Eventually = Callable[[Callable[[], bool], float], None]
LONG: dict[str, Any] = {"model": "m", "prompt": "a", "max_tokens": 4000, "ignore_eos": True, "temperature": 0}
JSON = "Content-Type: application/json\r\n"


def post(body: bytes, headers: str = JSON, path: str = "/v1/completions") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\n{headers}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    return head.encode("latin-1") + body


def asking(server: Server, **fields: Any) -> socket.socket:
    connection = socket.create_connection(server.address)
    connection.sendall(post(json.dumps({**LONG, **fields}).encode()))
    return connection


def answer_to(server: Server, request: bytes, half: bool = False) -> bytes:
    """Everything that comes back; nothing, if the connection is cut. `half`: say that no more is coming."""
    received = b""
    with socket.create_connection(server.address, timeout=120) as connection, contextlib.suppress(OSError):
        connection.sendall(request)
        if half:
            connection.shutdown(socket.SHUT_WR)
        while data := connection.recv(65536):
            received += data
    return received


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@contextmanager
def rss_within(server: Server, growth_bytes: int) -> Iterator[None]:
    before = server.rss_bytes()
    yield
    assert server.rss_bytes() - before < growth_bytes


def test_fault_12_a_storm_of_clients_that_leave(server: Server, eventually: Eventually) -> None:
    with selectors.DefaultSelector() as selector, ExitStack() as connections:
        for _ in range(200):
            selector.register(connections.enter_context(asking(server, stream=True)), selectors.EVENT_READ)
        eventually(lambda: len(selector.select(0)) >= 32, 10)  # as many as run at once have their first chunk
        assert server.metric("vllm:num_requests_running") == 32
    eventually(lambda: server.metric("twofour:http_requests_in_flight") == 0, 1)
    eventually(server.idle, 1)
    server.whole()


def test_fault_13_a_client_that_leaves_before_its_answer(server: Server, eventually: Eventually) -> None:
    aborted = 'vllm:request_success_total{engine="0",finished_reason="abort"'
    before = count(server, aborted)
    with asking(server, n=4):
        eventually(lambda: server.metric("vllm:num_requests_running") == 4, 5)
    eventually(server.idle, 1)
    assert count(server, aborted) == before + 4
    server.whole()


def count(server: Server, series: str) -> float:
    lines = server.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(series))


@pytest.mark.slow
def test_fault_14_readers_that_do_not_read(server: Server, eventually: Eventually) -> None:
    """Others get their whole text meanwhile; nobody's text piles up; and they are cut off in the end."""
    before = count(server, "twofour:stalled_streams_total")
    with rss_within(server, 64 << 20), ExitStack() as connections:
        for _ in range(20):
            connections.enter_context(unread(server))
        with server.stream(prompt="There was", max_tokens=500) as stream:
            text = "".join(choice["text"] for d in stream.rest() for choice in d["choices"])
        alone = server.complete(prompt="There was", max_tokens=500, temperature=0, ignore_eos=True)
        assert text == alone.json()["choices"][0]["text"]
        eventually(lambda: count(server, "twofour:stalled_streams_total") == before + 20, 60)
        eventually(server.idle, 1)
    server.whole()


def test_fault_14_the_largest_bodies_count_until_they_are_read(server: Server) -> None:
    """More of them than are held at a time, of which all answers are under way."""
    body = json.dumps({**LONG, "stream": True}).encode().rjust(EdgeConfig().max_body_bytes)
    headers = {"Content-Type": "application/json"}
    with ExitStack() as streams:
        for _ in range(LARGEST_AT_A_TIME + 2):
            client = streams.enter_context(server.client())
            answer = streams.enter_context(client.stream("POST", "/v1/completions", content=body, headers=headers))
            assert answer.status_code == 200, answer.read()
    server.whole()


def unread(server: Server) -> socket.socket:
    """A stream of about 1 MB, more than the system's own buffers hold, of which nothing is read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
    connection.connect(server.address)
    connection.sendall(post(json.dumps({**LONG, "stream": True}).encode()))
    return connection


@pytest.mark.slow
def test_fault_15_half_of_a_request(server: Server, eventually: Eventually) -> None:
    """Half a head, half a body, chunks without end: others are served, and all are cut off in time."""
    heads = [b"", b"POST /v1/completions HT", b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nX-A: "]
    bodies = [post(b"{}")[:-1], post(b"{}", JSON + "Transfer-Encoding: chunked\r\n")[:-2]]
    chunked = post(b"{}", JSON).replace(b"Content-Length: 2", b"Transfer-Encoding: chunked")[:-2]
    with ExitStack() as connections:
        halves = [connections.enter_context(socket.create_connection(server.address)) for _ in range(100)]
        for number, connection in enumerate(halves):
            connection.sendall([*heads, *bodies, chunked + b"1\r\n"][number % 6])
        assert server.text() == server.golden
        for connection in halves:
            connection.settimeout(600)
            with contextlib.suppress(ConnectionResetError):
                while connection.recv(65536):
                    pass
    server.whole()


@pytest.mark.slow
def test_fault_16_ten_times_more_than_it_can_take(start: Any, eventually: Eventually) -> None:
    server = start("--max-queue", "16", "--max-num-seqs", "4")
    text = server.complete(prompt="There was", max_tokens=40, temperature=0, ignore_eos=True).json()["choices"]
    with ThreadPoolExecutor(160) as pool:
        ask = {"prompt": "There was", "max_tokens": 40, "temperature": 0, "ignore_eos": True}
        burst = [pool.submit(server.complete, **ask) for _ in range(160)]
        while not all(asked.done() for asked in burst):
            under_way = server.metric("vllm:num_requests_running") + server.metric("vllm:num_requests_waiting")
            assert under_way <= 16
        answers = [asked.result() for asked in burst]
    accepted = [answer.json()["choices"] for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(accepted) >= 16
    assert accepted == [text] * len(accepted)
    assert {(r.status_code, r.headers["retry-after"], r.json()["error"]["code"]) for r in refused} <= {
        (503, "1", "engine_overloaded")
    }
    server.whole()


HOSTILE: dict[str, tuple[bytes, set[int]]] = {
    "100 MB": (b'{"model": "m", "prompt": "' + b"x" * (100 << 20) + b'"}', {413}),
    "a million levels": (b"[" * 1_000_000 + b"]" * 1_000_000, {413}),
    "100,000 tokens": (json.dumps({"model": "m", "prompt": [5] * 100_000}).encode(), {400}),
    "NUL": (b'{"model": "m", "prompt": "a\\u0000b", "max_tokens": 2}', {200}),
    "a lone surrogate": (b'{"model": "m", "prompt": "\\ud800"}', {400}),
    "NaN": (b'{"model": "m", "prompt": "a", "temperature": NaN}', {400}),
    "infinity": (b'{"model": "m", "prompt": "a", "temperature": Infinity}', {400}),
    "1e999": (b'{"model": "m", "prompt": "a", "temperature": 1e999}', {400}),
    "true for 1": (b'{"model": "m", "prompt": "a", "max_tokens": true}', {400}),
    "a billion choices": (b'{"model": "m", "prompt": "a", "n": 1000000000}', {400}),
    "fewer than none": (b'{"model": "m", "prompt": "a", "max_tokens": -1}', {400}),
    "a token that is none": (b'{"model": "m", "prompt": [-1]}', {400}),
    "unknown fields": (b'{"model": "m", "prompt": "a", "max_tokens": 2, "zzz": {"a": [1]}}', {400}),
    "duplicate keys": (b'{"model": "m", "prompt": "a", "max_tokens": 2, "max_tokens": 3}', {200, 400}),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_fault_17_hostile_input(server: Server, name: str) -> None:
    body, statuses = HOSTILE[name]
    with rss_within(server, 64 << 20), server.client() as client:
        answer = client.post("/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in statuses
    if answer.status_code != 200:
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    server.whole()


@pytest.mark.parametrize("seed", range(4))
def test_fault_18_requests_bent_at_random(server: Server, seed: int) -> None:
    """Never a 5xx, whatever arrives."""
    chance = random.Random(seed)
    for _ in range(40):
        answer = answer_to(server, bent(chance), half=True)
        if answer:
            assert 200 <= status_of(answer) < 500, answer
    server.whole()


def bent(chance: random.Random) -> bytes:
    """A good request in which a few bytes are others, missing or said again."""
    fields = {"model": "m", "prompt": "a", "max_tokens": 2, "temperature": 0.5, "logit_bias": {"5": 1}, "stop": ["x"]}
    path = chance.choice(["/v1/completions", "/v1/chat/completions", "/tokenize", "/health"])
    request = bytearray(post(json.dumps(fields).encode(), path=path))
    for _ in range(chance.randint(1, 6)):
        at = chance.randrange(len(request))
        how = chance.choice(["other", "missing", "again"])
        if how == "other":
            request[at] = chance.randrange(256)
        elif how == "missing":
            del request[at : at + chance.randint(1, 9)]
        else:
            request[at:at] = request[at : at + chance.randint(1, 40)]
    return bytes(request)


GET = "GET /version HTTP/1.1\r\nHost: h\r\n"


def test_fault_30_an_old_protocol(server: Server) -> None:
    assert status_of(answer_to(server, b"GET /version HTTP/1.0\r\n\r\n")) == 200
    old = post(json.dumps({"model": "m", "prompt": "a", "max_tokens": 2, "stream": True}).encode())
    answer = answer_to(server, old.replace(b"HTTP/1.1", b"HTTP/1.0"))
    assert answer.endswith(b"data: [DONE]\n\n"), "without chunks: the end of the connection is the end"
    server.whole()


def test_fault_30_requests_in_a_row(server: Server) -> None:
    answer = answer_to(server, (GET + "\r\n" + GET + "Connection: close\r\n\r\n").encode())
    assert answer.count(b"HTTP/1.1 200") == 2
    server.whole()


def test_fault_30_a_client_that_asks_before_it_sends(server: Server) -> None:
    body = json.dumps({"model": "m", "prompt": "a", "max_tokens": 2}).encode()
    answer = answer_to(server, post(body, f"{JSON}Expect: 100-continue\r\n"))
    assert answer.startswith(b"HTTP/1.1 100") and b"HTTP/1.1 200" in answer
    server.whole()


def test_fault_30_a_packed_body_is_not_unpacked(server: Server) -> None:
    packed = bytes.fromhex("1f8b0800000000000003") + bytes(1000)
    assert status_of(answer_to(server, post(packed, f"{JSON}Content-Encoding: gzip\r\n"))) == 400
    server.whole()
