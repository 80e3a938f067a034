"""Fault 31: more hostile connections than a server of 200 open files can have, without a key and with one.

What they hold must not keep others out, and all of it must be given back although they go on.
"""

import contextlib
import os
import resource
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

Server = Any
SLACK = float(os.environ.get("TWOFOUR_FAULT_SLACK", "10"))
Eventually = Callable[[Callable[[], bool], float], None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="/proc is of Linux"),
]

FILES, CLIENTS = 200, 250
GET = "GET /health HTTP/1.1\r\nHost: h\r\n"
POST = "POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: 100000\r\n"
# What each of them sends, and then sends again and again.
CLIENTS_THAT = {
    "say nothing": ("", ""),
    "send half a head": ("GET /hea", "x"),
    "are answered before their body": (f"{GET}Content-Length: 100000\r\n\r\n", "x"),
    "are refused before their body": (f"{POST}\r\n{{", " "),
    "send a body slowly": (f"{POST}Authorization: Bearer k\r\n\r\n{{", " "),
    "stay": (f"{GET}\r\n", ""),
    "send more after their last request": (f"{GET}Connection: close\r\n\r\n", "x"),
    "speak no HTTP": ("hello\r\n\r\n", "x"),
    "ask much at once and read nothing": ("GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n" * 200, ""),
}


@pytest.fixture(scope="module")
def small(start: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text("k\n")
    return start(
        *("--api-key-file", str(keys)),
        headers={"Authorization": "Bearer k"},
        deadlines={"head": 2, "rest": 2, "idle": 4, "unread": 2},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES)),
    )


@pytest.fixture(autouse=True)
def own_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 1024:
        pytest.skip("needs more open files than are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1024), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def alive(server: Server) -> None:
    began = time.monotonic()
    assert server.get("/health").status_code == 200
    assert time.monotonic() - began < 1 * SLACK


def open_one(server: Server, first: bytes) -> socket.socket:
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
    connection.connect(server.address)
    connection.setblocking(False)
    send(connection, first)
    return connection


def send(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):  # it is cut off, or does not read
        connection.send(data)


@pytest.mark.parametrize("half", [False, True], ids=["", "half-closed"])
@pytest.mark.parametrize("name", CLIENTS_THAT)
def test_fault_31_clients_that(small: Server, eventually: Eventually, name: str, half: bool) -> None:
    first, drop = (text.encode() for text in CLIENTS_THAT[name])
    with ExitStack() as stack:
        connections = []
        for number in range(CLIENTS):
            connections.append(stack.enter_context(open_one(small, first)))
            if half:
                with contextlib.suppress(OSError):
                    connections[-1].shutdown(socket.SHUT_WR)
            if number % 10 == 0:
                alive(small)
        assert small.complete(prompt="a").status_code == 200, "who has a key is served"

        def given_back() -> bool:
            for connection in connections:
                send(connection, drop)
            alive(small)
            return bool(small.open_fds() <= small.fds)

        eventually(given_back, 40)  # of which a body may take 30
    small.whole()
