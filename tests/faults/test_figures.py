"""Faults 12, 14 and 16 again, measured: how long, how much slower, how fast it says no.

    TWOFOUR_FAULT_SLACK=1 pytest -m slow tests/faults/test_figures.py

prints the figures; they go into a JUnit report, too. What is asserted is the work done, and each rule's limit times
the slack.
"""

import asyncio
import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import pytest

from twofour.bench.load import wire
from twofour.bench.load.client import Client
from twofour.bench.load.decode import Exchange
from twofour.bench.load.pace import Job
from twofour.bench.load.records import Request

Server = Any
Eventually = Callable[[Callable[[], bool], float], None]
Say = Callable[[str, float, float | None], None]
SLACK = float(os.environ.get("TWOFOUR_FAULT_SLACK", "10"))
LONG: dict[str, Any] = {"model": "m", "prompt": "a", "max_tokens": 4000, "ignore_eos": True, "temperature": 0}
pytestmark = pytest.mark.slow


def connect(server: Server, receive_bytes: int | None = None, **fields: Any) -> socket.socket:
    """A stream of a client's own, asked for."""
    to = wire.target(server.url)
    connection = socket.socket()
    if receive_bytes:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_bytes)
    connection.connect(server.address)
    connection.sendall(wire.post(to, "/completions", json.dumps({**LONG, "stream": True, **fields}).encode(), {}))
    return connection


ABORTED = 'vllm:request_success_total{engine="0",finished_reason="abort"'


def count(server: Server, series: str) -> float:
    lines = server.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(series))


@pytest.mark.parametrize("when", ["after", "before"])
def test_fault_12_two_hundred_leave(start: Any, eventually: Eventually, say: Say, when: str) -> None:
    """After their first chunk, all of them; or before it, waiting behind one that has the engine for itself."""
    server = start("--max-num-seqs", "200" if when == "after" else "1")
    before = count(server, ABORTED)
    with ExitStack() as stack:
        if when == "before":
            assert stack.enter_context(connect(server)).recv(65536).startswith(b"HTTP/1.1 200")
        clients = [stack.enter_context(connect(server)) for _ in range(200)]
        if when == "after":
            for client in clients:
                assert client.recv(65536).startswith(b"HTTP/1.1 200")
            assert server.metric("vllm:num_requests_running") == 200
        else:
            eventually(lambda: server.metric("vllm:num_requests_waiting") == 200, 10)
            for client in clients:
                client.setblocking(False)
                with pytest.raises(BlockingIOError):
                    client.recv(1)
        begun = time.perf_counter()
    eventually(lambda: server.metric("twofour:http_requests_in_flight") == 0 and server.idle(), 10)
    say(f"seconds until 200 that leave {when} their first chunk are gone", time.perf_counter() - begun, 1)
    assert count(server, ABORTED) == before + 200 + (when == "before")
    server.whole()


@contextmanager
def beside(server: Server, read: Callable[[list[socket.socket]], None]) -> Iterator[None]:
    """Twenty other streams, which a thread reads in its way until the end of the block."""
    over = threading.Event()

    def work() -> None:
        while not over.is_set():
            read(streams)

    with ExitStack() as stack:
        streams = [stack.enter_context(connect(server, 1024)) for _ in range(20)]
        reader = threading.Thread(target=work)
        reader.start()
        try:
            yield
        finally:
            over.set()
            reader.join()


def all_there_is(streams: list[socket.socket]) -> None:
    for stream in streams:
        stream.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            stream.recv(65536)
    time.sleep(0.002)


def a_byte_a_second(streams: list[socket.socket]) -> None:
    for stream in streams:
        stream.setblocking(False)
        with contextlib.suppress(BlockingIOError, ConnectionResetError):
            stream.recv(1)
    time.sleep(1)


def between_tokens_s(server: Server) -> float:
    """The mean time between the tokens of a stream, which is read as it comes."""
    times: list[float] = []
    with connect(server, prompt="There was", max_tokens=300) as stream:
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            received += stream.recv(65536)
            times.append(time.perf_counter())
    assert b'"finish_reason":"length"' in received and b"data: [DONE]" in received
    return (times[-1] - times[0]) / 300


def test_fault_14_beside_readers_of_a_byte_a_second(start: Any, eventually: Eventually, say: Say) -> None:
    """A stream's time between tokens, against its time beside as many that read; and what is kept for the slow."""
    server = start()
    alone_s = median(between_tokens_s(server) for _ in range(3))
    with beside(server, all_there_is):
        beside_readers_s = median(between_tokens_s(server) for _ in range(3))
    eventually(server.idle, 10)
    rss_bytes = server.rss_bytes()
    with beside(server, a_byte_a_second):
        beside_slow_s = median(between_tokens_s(server) for _ in range(3))
        eventually(lambda: count(server, "twofour:stalled_streams_total") == 20, 60)
        eventually(lambda: server.metric("twofour:http_requests_in_flight") == 0, 5)
        eventually(lambda: server.settled_fds() == server.fds, 40)  # though the clients are still there
    say(
        "time between tokens beside 20 slow readers, over that beside 20 quick ones",
        beside_slow_s / beside_readers_s,
        1.5,
    )
    say("the same, over that of a stream alone", beside_slow_s / alone_s, None)
    say("MB that the server has grown by", (server.rss_bytes() - rss_bytes) / 1e6, 64)
    server.whole()


ASK = {**LONG, "prompt": "There was", "max_tokens": 40}


async def clients(server: Server, count: int, seconds: float) -> tuple[list[Exchange], float]:
    """So many at a time ask again and again, a second after a refusal; all exchanges, and how long it took."""
    to, done = wire.target(server.url), list[Exchange]()
    client, message = Client(to, 60 * SLACK, None), wire.post(to, "/completions", json.dumps(ASK).encode(), {})
    begun = time.perf_counter()

    async def work() -> None:
        while time.perf_counter() < begun + seconds:
            job = Job(Request(0, 0.0, "", 0, 40), message)
            await client.send(job)
            done.append(job.exchange)
            if job.exchange.status != 200:
                await asyncio.sleep(1)

    await asyncio.gather(*(work() for _ in range(count)))
    client.close()
    return done, max(exchange.done_at or 0.0 for exchange in done if exchange.status == 200) - begun


def took_s(exchange: Exchange) -> float:
    return (exchange.done_at or 0.0) - (exchange.sent_at or 0.0)


def test_fault_16_ten_times_its_capacity(start: Any, say: Say) -> None:
    server = start("--max-queue", "16", "--max-num-seqs", "4", "--deadline-s", "30")
    peak, peak_s = asyncio.run(clients(server, 16, 5))
    flood, flood_s = asyncio.run(clients(server, 160, 10))
    begun = time.perf_counter()
    assert server.text() == server.golden
    recovery_s = time.perf_counter() - begun
    accepted = [exchange for exchange in flood if exchange.status == 200]
    refused = [exchange for exchange in flood if exchange.status == 503]
    assert {exchange.status for exchange in flood} == {200, 503} and {exchange.status for exchange in peak} == {200}
    texts = {json.loads(b"".join(data for _, data in e.reads))["choices"][0]["text"] for e in (*peak, *accepted)}
    assert len(texts) == 1
    waits_s = sorted(map(took_s, refused))
    say(f"seconds to the median of {len(refused)} refusals", median(waits_s), 0.1)
    say("seconds to the slowest of 99 % of them", waits_s[len(waits_s) * 99 // 100], 0.1)
    say(f"seconds to the slowest of {len(accepted)} answers (deadline 30)", max(map(took_s, accepted)), 30)
    say("peak goodput over goodput in the flood", (len(peak) / peak_s) / (len(accepted) / flood_s), 1 / 0.8)
    say("seconds until it answers as ever", recovery_s, 5)
    server.whole()
