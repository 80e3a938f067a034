"""Connections that nobody should suffer from: after every one, the server is well and says what it always says."""

import contextlib
import json
import resource
import socket
from collections.abc import Iterator
from typing import Any

import pytest

from twofour.serve.edge.auth import digest
from twofour.serve.edge.harden import EdgeConfig

BODY = json.dumps({"model": "m", "prompt": "hi", "max_tokens": 100, "stream": True})
HEAD = "POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
AUTHORIZATION = {
    "none": None,
    "wrong": "Bearer wrong",
    "basic": "Basic cmlnaHQ6",
    "no scheme": "right",
    "not ASCII": "Bearer r\xefght",
    "twice": "Bearer right, Bearer right",
    "long": f"Bearer {'r' * 60_000}",
}


def exchange(server: Any, request: str) -> bytes:
    received = b""
    with socket.create_connection(server.address, timeout=5) as connection, contextlib.suppress(OSError):
        connection.sendall(request.encode("latin-1"))
        connection.shutdown(socket.SHUT_WR)
        while data := connection.recv(65536):
            received += data
    return received


@pytest.mark.parametrize("name", AUTHORIZATION)
@pytest.mark.parametrize("path", ["/v1/models", "/tokenize", "/version", "/docs", "/debug/steps", "/metrics"])
def test_without_a_key(keyed: Any, path: str, name: str) -> None:
    authorization = AUTHORIZATION[name]
    line = "" if authorization is None else f"Authorization: {authorization}\r\n"
    answer = exchange(keyed, f"GET {path} HTTP/1.1\r\nHost: a/?x=\r\n{line}Connection: close\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 401")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "invalid_api_key"


@pytest.fixture(scope="module")
def keyed(launch_once: Any) -> Any:
    """With a key, which its client has, and nothing open but the probes of life."""
    edge = EdgeConfig(api_keys=(digest(b"right"),), open_paths=frozenset({"/health", "/ready"}))
    server = launch_once(edge=edge)
    server.client.headers["Authorization"] = "Bearer right"
    return server


@pytest.fixture(autouse=True)
def unharmed(request: pytest.FixtureRequest) -> Iterator[None]:
    server = request.getfixturevalue("keyed" if "keyed" in request.fixturenames else "shared")
    yield
    server.control()


MANY = "".join(f"x-{number}: 1\r\n" for number in range(2000))
FRAMING = {
    "two kinds of length": (f"{HEAD}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
    "two lengths": (f"{HEAD}Content-Length: 5\r\nContent-Length: 6\r\n\r\n{BODY}", b"400"),
    "a length in words": (f"{HEAD}Content-Length: five\r\n\r\n{BODY}", b"400"),
    "a negative length": (f"{HEAD}Content-Length: -1\r\n\r\n{BODY}", b"400"),
    "an unknown coding": (f"{HEAD}Transfer-Encoding: gzip\r\n\r\n{BODY}", b"400"),
    "no host": ("GET /health HTTP/1.1\r\n\r\n", b"400"),
    "no HTTP": ("hello\r\n\r\n", b"400"),
    "a proxy's method": ("CONNECT h:443 HTTP/1.1\r\nHost: h:443\r\n\r\n", b"404"),
    "a method that is none": ("BREW /health HTTP/1.1\r\nHost: h\r\nUpgrade: tea\r\n\r\n", b"405"),
    "200 KB of header": (f"GET /health HTTP/1.1\r\nHost: h\r\nX-Big: {'a' * 200_000}\r\n\r\n", b"431"),
    "2,000 headers": (f"GET /health HTTP/1.1\r\nHost: h\r\n{MANY}\r\n", b"431"),
    "a body too short": (f"{HEAD}Content-Length: 500\r\n\r\n{BODY}", b""),
    "a bad chunk": (f"{HEAD}Transfer-Encoding: chunked\r\n\r\nzz\r\n{BODY}\r\n0\r\n\r\n", b""),
}


@pytest.mark.parametrize("name", FRAMING)
def test_bad_framing(shared: Any, name: str) -> None:
    request, status = FRAMING[name]
    answer = exchange(shared, request)
    if name == "200 KB of header" and not answer:
        return  # the answer is lost where the connection ends while the rest is being sent
    assert answer.startswith(b"HTTP/1.1 " + status if status else b"") and b" 200 " not in answer[:20]
    if status:
        head, _, body = answer.partition(b"\r\n\r\n")
        assert set(json.loads(body)["error"]) == {"message", "type", "param", "code"}
        assert b"\r\nx-request-id: " in head and b"\r\ncontent-type: application/json" in head


@pytest.mark.parametrize("at_once", [True, False])
def test_a_body_that_goes_wrong_keeps_its_id(shared: Any, caplog: pytest.LogCaptureFixture, at_once: bool) -> None:
    """Before the edge has seen the request, and while it waits for the rest."""
    shared.eventually(lambda: shared.lifecycle.in_flight == 0)
    parts = [f"{HEAD}Transfer-Encoding: chunked\r\n\r\n".encode(), b"zz\r\n"]
    with caplog.at_level("INFO", "twofour.access"), socket.create_connection(shared.address, timeout=5) as connection:
        connection.sendall(b"".join(parts) if at_once else parts[0])
        if not at_once:
            shared.eventually(lambda: shared.lifecycle.in_flight == 1)
            connection.sendall(parts[1])
        answer = connection.recv(65536)
        given = answer.partition(b"x-request-id: ")[2].partition(b"\r\n")[0].decode()
        shared.eventually(lambda: f'"id": "{given}"' in caplog.text)
    assert answer.startswith(b"HTTP/1.1 400") and len(given) == 32


def test_a_length_that_is_too_short(shared: Any) -> None:
    """What is left over is the next request, and none."""
    with socket.create_connection(shared.address, timeout=5) as connection:
        connection.sendall(f"{HEAD}Content-Length: 10\r\n\r\n{BODY}\r\n\r\n".encode())
        received = b""
        while data := connection.recv(65536):  # to its end, which the server makes
            received += data
    assert received.count(b"HTTP/1.1 400") == 2


def test_a_long_request_id_is_not_repeated(shared: Any) -> None:
    answer = shared.client.get("/health", headers={"X-Request-Id": "a" * 60_000})
    assert answer.status_code == 200 and len(answer.headers["x-request-id"]) == 32


@pytest.mark.parametrize("chunked", [False, True])
def test_forty_megabytes(shared: Any, chunked: bool) -> None:
    part = b"x" * (1 << 20)
    content: Any = iter([part] * 40) if chunked else part * 40
    answer = shared.client.post("/v1/completions", content=content, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")


def test_a_thousand_silent_connections(shared: Any) -> None:
    """Nothing, half a head or half a body: the others are served meanwhile."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 4096:
        pytest.skip("needs more open files than are allowed here")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    with contextlib.ExitStack() as stack:
        for number in range(1000):
            connection = stack.enter_context(socket.create_connection(shared.address, timeout=5))
            connection.sendall([b"", b"GET /hea", f"{HEAD}Content-Length: 99\r\n\r\nx".encode()][number % 3])
        shared.control()
    shared.eventually(lambda: shared.metric("twofour:http_requests_in_flight") == 0)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("count", [50, pytest.param(1000, marks=pytest.mark.slow)])
def test_clients_that_leave_within_their_stream(shared: Any, count: int) -> None:
    request = f"{HEAD}Content-Length: {len(BODY)}\r\n\r\n{BODY}".encode()
    before = len(shared.engine.prompts)
    for _ in range(count):
        with socket.create_connection(shared.address, timeout=5) as connection:
            connection.sendall(request)
            assert connection.recv(20).startswith(b"HTTP/1.1 200")
    shared.eventually(lambda: shared.lifecycle.in_flight == 0)
    assert shared.engine.open == 0 and len(shared.engine.prompts) == before + count
