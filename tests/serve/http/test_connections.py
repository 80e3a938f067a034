"""Nobody holds a connection past its deadlines, whatever is sent when. Where a clock and a buffer decide, they are the
test's; the rest is said through a socket, to a server with short deadlines."""

import contextlib
import json
import logging
import socket
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from twofour.serve.edge.auth import digest
from twofour.serve.edge.harden import EdgeConfig
from twofour.serve.http import connections
from twofour.serve.http.connections import DEADLINES_S, LOOK_S, UNREAD_ALL_S, UNREAD_OPEN_S, UNREAD_S, TimelyProtocol


class Transport:
    """What is left to write, look by look."""

    def __init__(self, left: Iterable[int], closing: bool) -> None:
        self._left, self._closing, self.aborted = iter(left), closing, False

    def get_write_buffer_size(self) -> int:
        return next(self._left)

    def is_closing(self) -> bool:
        return self._closing

    def get_extra_info(self, name: str) -> Any:
        assert name == "socket"
        return self

    def setsockopt(self, *option: Any) -> None:
        pass

    def abort(self) -> None:
        self.aborted = True


class Clock:
    """A loop that makes the next call at once, and sets its time to when that was due."""

    def __init__(self) -> None:
        self.now = 0.0
        self.calls: list[Callable[[], None]] = []

    def time(self) -> float:
        return self.now

    def call_later(self, delay_s: float, call: Callable[..., None], *arguments: Any) -> None:
        def due() -> None:
            self.now += delay_s
            call(*arguments)

        self.calls.append(due)

    def run(self, transport: Transport) -> float:
        """Until nothing is due or the buffer has no more to tell; the seconds that passed."""
        while self.calls and not transport.aborted:
            try:
                self.calls.pop()()
            except StopIteration:
                break
        return self.now


def looked_at(left: list[int], closing: bool) -> tuple[bool, float]:
    """Whether and when a connection is cut that has so many bytes left at each look."""
    protocol: Any = TimelyProtocol.__new__(TimelyProtocol)
    protocol.transport, protocol.loop = Transport(left, closing), Clock()
    protocol._look(left[0], 0.0, 0.0)
    seconds = protocol.loop.run(protocol.transport)
    return protocol.transport.aborted, seconds


LOOKS = int(UNREAD_S / LOOK_S)


def test_nobody_takes_the_last_bytes() -> None:
    assert looked_at([100] * 2 * LOOKS, closing=True) == (True, UNREAD_S)


def test_somebody_takes_one_now_and_then() -> None:
    slow = [left for left in range(10, 0, -1) for _ in range(LOOKS)]
    assert looked_at(slow, closing=True)[0] is False
    assert looked_at(slow + [1] * LOOKS, closing=True) == (True, UNREAD_S * 10)


def test_an_open_connection_is_left_to_its_request_at_first() -> None:
    assert looked_at([100] * (2 * LOOKS - 1), closing=False)[0] is False
    assert looked_at([100] * 4 * LOOKS, closing=False) == (True, UNREAD_OPEN_S)


@pytest.mark.parametrize("closing", [False, True])
def test_a_byte_now_and_then_does_not_hold_it_for_ever(closing: bool) -> None:
    drops = [left for left in range(1000, 0, -1) for _ in range(LOOKS // 2)]
    assert looked_at(drops, closing) == (True, UNREAD_ALL_S)


GET = b"GET /health HTTP/1.1\r\nHost: h\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
BODY = json.dumps({"model": "m", "prompt": "hi", "max_tokens": 100}).encode()
WHOLE = POST + b"Authorization: Bearer k\r\nContent-Length: %d\r\n" % len(BODY)
# What a client sends, and then sends again and again.
HOLDS = {
    "nothing": (b"", b""),
    "half a head": (b"GET /hea", b""),
    "a head without end": (b"GET / HTTP/1.1\r\n", b"a: b\r\n"),
    "answered before its body": (GET + b"Content-Length: 100000\r\n\r\n", b"x"),
    "answered before its chunks": (GET + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
    "refused before its body": (POST + b"Content-Length: 100000\r\n\r\n", b"x"),
    "refused and told to go": (POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", b"x"),
    "half a body": (WHOLE.replace(b"Length: ", b"Length: 100") + b"\r\n{", b" "),
    "idle": (GET + b"\r\n", b""),
    "a second head": (GET + b"\r\n", b"G"),
    "half of a second head at once": (GET + b"\r\nGET /h", b"e"),
    "bytes after the last request": (GET + b"Connection: close\r\n\r\n", b"x"),
    "bytes after no HTTP": (b"hello\r\n\r\n", b"x"),
    "a tunnel": (b"CONNECT h:80 HTTP/1.1\r\nHost: h\r\n\r\n", b"x"),
    "another protocol": (GET + b"Connection: upgrade\r\nUpgrade: websocket\r\n\r\n", b"\x81\x00"),
}


@pytest.fixture
def hasty(launch: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """With a key, and with deadlines of a tenth of a second."""
    for phase in DEADLINES_S:
        monkeypatch.setitem(DEADLINES_S, phase, 0.1)
    server = launch(edge=EdgeConfig(api_keys=(digest(b"k"),), body_deadline_s=0.1))
    server.client.headers["Authorization"] = "Bearer k"
    return server


def ended(connection: socket.socket) -> bool:
    """Within the time that a read may take."""
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


@pytest.mark.parametrize("name", HOLDS)
def test_no_connection_is_held(hasty: Any, name: str) -> None:
    first, drop = HOLDS[name]
    with socket.create_connection(hasty.address, timeout=0.005) as connection:

        def gone() -> bool:
            with contextlib.suppress(ConnectionError):
                connection.sendall(drop)
            return ended(connection)

        connection.sendall(first)
        hasty.eventually(gone)
    hasty.control()


@pytest.mark.parametrize("closing", [b"", b"Connection: close\r\n"])
def test_an_answer_that_nobody_reads(hasty: Any, monkeypatch: pytest.MonkeyPatch, closing: bytes) -> None:
    """Hundreds of requests at once, or one answer that is too large for the system's buffers."""
    monkeypatch.setattr(connections, "UNREAD_S", 0.1)
    monkeypatch.setattr(connections, "UNREAD_OPEN_S", 0.1)
    monkeypatch.setattr(connections, "LOOK_S", 0.05)
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
        connection.connect(hasty.address)
        connection.sendall((GET.replace(b"health", b"metrics") + b"\r\n") * 200 + GET + closing + b"\r\n")
        hasty.eventually(lambda: connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) != 0)  # it was reset
    hasty.control()


def received(connection: socket.socket) -> bytes:
    whole = b""
    while data := connection.recv(65536):
        whole += data
    return whole


def test_a_refused_upload_is_read_to_its_answer(launch: Any) -> None:
    """A megabyte is still coming when the answer, after which the connection closes, is written."""
    server = launch()
    request = POST + b"Transfer-Encoding: chunked\r\nContent-Length: 1\r\n\r\n"
    with socket.create_connection(server.address, timeout=10) as connection:
        connection.sendall(request)
        server.eventually(lambda: server.metric('http_requests_total{handler="/v1/completions"') == 1)
        for _ in range(16):
            connection.sendall(b"x" * 65536)
        assert received(connection).startswith(b"HTTP/1.1 400")


def test_bytes_after_the_last_request_do_not_hurt_its_answer(launch: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = launch(launch.engine(hold_after=2))
    stream = BODY[:-1] + b', "stream": true}'
    head = POST + b"Connection: close\r\nContent-Length: %d\r\n\r\n" % len(stream)
    with socket.create_connection(server.address, timeout=10) as connection, caplog.at_level(logging.ERROR):
        connection.sendall(head + stream)
        begun = connection.recv(65536)
        connection.sendall(b"GET /health HTTP/1.1\r\n\r\nand more")
        server.client.get("/health")
        server.engine.release()
        assert (begun + received(connection)).endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
    assert not caplog.records


def test_a_body_that_goes_wrong_is_refused_once(launch: Any, caplog: pytest.LogCaptureFixture) -> None:
    server = launch()
    with socket.create_connection(server.address, timeout=10) as connection, caplog.at_level(logging.ERROR):
        connection.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n")
        server.eventually(lambda: server.lifecycle.in_flight == 1)
        connection.sendall(b"zz\r\n")
        answer = received(connection)
    assert answer.startswith(b"HTTP/1.1 400") and answer.count(b"HTTP/1.1") == 1
    server.eventually(lambda: server.lifecycle.in_flight == 0)
    assert not caplog.records


def test_an_early_answer_does_not_end_the_connection(launch: Any) -> None:
    """Where the body comes in time, the next request does, too."""
    server = launch()
    with socket.create_connection(server.address, timeout=10) as connection:
        connection.sendall(GET + b"Content-Length: 4\r\n\r\n")
        first = connection.recv(65536)
        connection.sendall(b"body" + GET + b"Connection: close\r\n\r\n")
        assert (first + received(connection)).count(b"HTTP/1.1 200") == 2
