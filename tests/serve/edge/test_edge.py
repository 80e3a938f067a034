"""The edge: what is refused before any route sees it, and what every answer carries."""

import asyncio
import contextlib
import json
import socket
from pathlib import Path
from typing import Any

import httpx
import pytest

from twofour.prune.errors import InputError
from twofour.serve.edge.auth import digest, read_keys
from twofour.serve.edge.harden import EdgeConfig
from twofour.serve.edge.ids import choose_id
from twofour.serve.edge.limits import Limits

KEYS = EdgeConfig(api_keys=(digest(b"first"), digest(b"second")))
JSON = "Content-Type: application/json\r\n"
BODY = json.dumps({"model": "m", "prompt": "hi"})


def raw(server: Any, request: str) -> str:
    """What comes back to a client that sends no more."""
    with socket.create_connection(server.address, timeout=5) as connection:
        connection.sendall(request.encode("latin-1"))
        connection.shutdown(socket.SHUT_WR)
        return to_the_end(connection)


def to_the_end(connection: socket.socket) -> str:
    received = b""
    while data := connection.recv(65536):
        received += data
    return received.decode("latin-1")


def post(headers: str, body: str = BODY) -> str:
    return f"POST /v1/completions HTTP/1.1\r\nHost: h\r\n{headers}\r\n{body}"


def error_of(answer: str) -> Any:
    return json.loads(answer.partition("\r\n\r\n")[2])["error"]


@pytest.mark.parametrize(
    "header",
    [None, b"", b"Bearer", b"Bearer wrong", b"Basic first", b"first", b"Bearer firs", b"Bearer \xff\xfe"],
)
def test_wrong_keys(launch: Any, header: bytes | None) -> None:
    server = launch(edge=KEYS)
    headers = {} if header is None else {"Authorization": header}
    answer = server.client.get("/v1/models", headers=headers)
    assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_every_key_opens_and_only_probes_are_open(launch: Any) -> None:
    server = launch(edge=KEYS)
    for key in ("first", "second"):
        assert server.client.get("/v1/models", headers={"Authorization": f"bearer {key}"}).status_code == 200
    for path in ("/health", "/ready", "/metrics"):
        assert server.client.get(path).status_code == 200
    for path in (
        "/",
        "/version",
        "/docs",
        "/openapi.json",
        "/nope",
        "/health/",
        "//health",
        "/v1/models/../health",
    ):
        request = f"GET {path} HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n"
        assert raw(server, request).startswith("HTTP/1.1 401"), path
    server.eventually(lambda: server.metric('twofour:rejected_requests_total{reason="invalid_api_key"') == 8)


def test_who_asks_comes_before_what_is_wrong(launch: Any) -> None:
    """With a wrong key, a request is refused for that, whatever else could be said of it."""
    server = launch(edge=EdgeConfig(api_keys=KEYS.api_keys, max_body_bytes=10, limits=Limits(1)))
    many = "".join(f"x-{number}: 1\r\n" for number in range(200))
    origin = "Origin: https://evil.example\r\nAccess-Control-Request-Method: POST\r\n"
    wrong = {
        "no body": post(""),
        "no JSON": post("Content-Type: text/plain\r\nContent-Length: 1\r\n", "x"),
        "too many headers": post(f"{JSON}{many}Content-Length: 2\r\n", "{}"),
        "too large": post(f"{JSON}Content-Length: {len(BODY)}\r\n"),
        "no route": "GET /nope HTTP/1.1\r\nHost: h\r\n\r\n",
        "no method": "DELETE /v1/completions HTTP/1.1\r\nHost: h\r\n\r\n",
        "another origin": f"OPTIONS /v1/completions HTTP/1.1\r\nHost: h\r\n{origin}\r\n",
    }
    for what, request in wrong.items():
        assert raw(server, request).startswith("HTTP/1.1 401"), what
    server.lifecycle.draining = True
    assert raw(server, post(f"{JSON}Content-Length: 2\r\n", "{}")).startswith("HTTP/1.1 401")


def test_where_a_request_ends_comes_before_who_asks(launch: Any) -> None:
    """It is refused and the connection closed: nothing that follows may be taken for a request."""
    smuggled = "0\r\n\r\nGET /health HTTP/1.1\r\nHost: h\r\n\r\n"
    answer = raw(launch(edge=KEYS), post(f"{JSON}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", smuggled))
    assert answer.startswith("HTTP/1.1 400") and answer.count("HTTP/1.1") == 1


def test_the_host_header_opens_nothing(launch: Any) -> None:
    server = launch(edge=KEYS)
    for host in ("a/health?x=", "health", "h/metrics#"):
        answer = raw(server, f"GET /v1/models HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")
        assert answer.startswith(("HTTP/1.1 401", "HTTP/1.1 400"))


def test_key_files(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text("first\n\n  second \r\n")
    assert read_keys(keys) == KEYS.api_keys
    keys.write_text("\n \n")
    with pytest.raises(InputError, match="holds no API key"):
        read_keys(keys)
    with pytest.raises(InputError, match="cannot read"):
        read_keys(tmp_path / "missing")
    keys.write_bytes(b"\xff")
    with pytest.raises(InputError, match="cannot read"):
        read_keys(keys)


def test_request_ids_are_taken_where_safe(shared: Any) -> None:
    def echoed(given: str) -> str:
        return str(shared.client.get("/health", headers={"X-Request-Id": given}).headers["x-request-id"])

    assert echoed("abc-1.2:3_4") == "abc-1.2:3_4"
    assert echoed("a" * 128) == "a" * 128
    for unsafe in ("a" * 129, "a b", "a\tb", "<script>", ""):
        assert len(echoed(unsafe)) == 32
    assert choose_id(b"a\n") != "a\n"
    assert choose_id(None) != choose_id(None)


def test_every_answer_has_an_id(shared: Any) -> None:
    for path in ("/health", "/nope", "/v1/completions"):
        assert shared.client.get(path).headers["x-request-id"]
    assert shared.complete(stream=True).headers["x-request-id"]


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_over_the_limit(launch: Any, chunked: bool) -> None:
    server = launch(edge=EdgeConfig(max_body_bytes=1000))
    body = b"x" * 500_000
    content: Any = iter([body]) if chunked else body
    headers = {"Content-Type": "application/json"}
    answer = server.client.post("/v1/completions", content=content, headers=headers)
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "request_too_large")
    assert answer.headers["connection"] == "close"
    server.control()


def test_a_body_of_exactly_the_limit(launch: Any) -> None:
    server = launch(edge=EdgeConfig(max_body_bytes=len(BODY)))
    headers = {"Content-Type": "application/json"}
    assert server.client.post("/v1/completions", content=BODY, headers=headers).status_code == 200
    assert server.client.post("/v1/completions", content=BODY + " ", headers=headers).status_code == 413


def test_a_client_that_asks_first_need_not_send(launch: Any) -> None:
    server = launch(edge=EdgeConfig(max_body_bytes=1000))
    request = post(f"{JSON}Expect: 100-continue\r\nContent-Length: 5000\r\n", body="")
    with socket.create_connection(server.address, timeout=5) as connection:
        connection.sendall(request.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


def test_half_a_body_is_not_waited_for(launch: Any) -> None:
    server = launch(edge=EdgeConfig(body_deadline_s=0.1))
    with socket.create_connection(server.address, timeout=5) as connection:
        connection.sendall(post(f"{JSON}Content-Length: 500\r\n", body='{"model"').encode())
        answer = to_the_end(connection)
    assert answer.startswith("HTTP/1.1 408")
    assert error_of(answer)["type"] == "invalid_request_error"
    server.control()


def test_a_client_that_leaves_within_its_body(launch: Any) -> None:
    server = launch()
    with socket.create_connection(server.address, timeout=5) as connection:
        connection.sendall(post(f"{JSON}Content-Length: 500\r\n", body='{"model"').encode())
    server.eventually(lambda: server.lifecycle.in_flight == 0)
    server.control()


def test_two_lengths_are_refused(shared: Any) -> None:
    answer = raw(shared, post(f"{JSON}Content-Length: 5\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"))
    assert answer.startswith("HTTP/1.1 400")
    assert error_of(answer)["type"] == "invalid_request_error"
    assert raw(shared, post(f"{JSON}Content-Length: 5\r\nContent-Length: 6\r\n")).startswith("HTTP/1.1 400")
    for no_http in ("GET /health HTTP/1.1\r\n\r\n", "hello\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n"):
        answer = raw(shared, no_http)
        assert answer.startswith("HTTP/1.1 400")
        assert error_of(answer)["type"] == "invalid_request_error"
    shared.control()


def test_too_many_or_too_large_headers(shared: Any) -> None:
    many = "".join(f"x-{number}: 1\r\n" for number in range(200))
    answer = raw(shared, f"GET /health HTTP/1.1\r\nHost: h\r\n{many}\r\n")
    assert answer.startswith("HTTP/1.1 431")
    assert set(error_of(answer)) == {"message", "type", "param", "code"}
    with contextlib.suppress(httpx.TransportError):  # the answer may be lost with the connection
        answer = shared.client.get("/health", headers={"X-Big": "a" * 200_000})
        assert answer.status_code == 431
        assert set(answer.json()["error"]) == {"message", "type", "param", "code"}
    shared.control()


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "json", None])
def test_bodies_that_are_not_json(shared: Any, content_type: str | None) -> None:
    header = "" if content_type is None else f"Content-Type: {content_type}\r\n"
    answer = raw(shared, post(f"{header}Content-Length: {len(BODY)}\r\nConnection: close\r\n"))
    assert answer.startswith("HTTP/1.1 400")
    assert "application/json" in error_of(answer)["message"]


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", "application/x+json"])
def test_bodies_that_are(shared: Any, content_type: str) -> None:
    answer = shared.client.post("/v1/completions", content=BODY, headers={"Content-Type": content_type})
    assert answer.status_code == 200


def test_other_origins_get_no_leave(shared: Any) -> None:
    headers = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    answer = shared.client.options("/v1/completions", headers=headers)
    assert answer.status_code == 400
    assert not [name for name in answer.headers if name.startswith("access-control")]


def test_who_is_not_waited_for_is_told_so(launch: Any) -> None:
    """The server ends while a body is still coming."""
    server = launch()
    with socket.create_connection(server.address, timeout=10) as connection:
        connection.sendall(post(f"{JSON}Content-Length: 500\r\n", body="{").encode())
        server.eventually(lambda: server.lifecycle.in_flight == 1)
        server.loop.call_soon_threadsafe(cancel_requests, server.loop)
        answer = to_the_end(connection)
    assert answer.startswith("HTTP/1.1 503") and error_of(answer)["code"] == "not_ready"


def cancel_requests(loop: asyncio.AbstractEventLoop) -> None:
    """As uvicorn does when its patience is over."""
    for task in asyncio.all_tasks(loop):
        if "run_asgi" in repr(task.get_coro()):
            task.cancel()


def test_http_metrics_have_no_series_of_the_clients_making(launch: Any) -> None:
    server = launch()
    server.client.get("/v1/models/m")
    for path in ("/a", "/b", "/v1/models/xyz/abc"):
        server.client.get(path)
    server.client.request("BREW", "/health")
    server.eventually(lambda: 'method="OTHER"' in server.client.get("/metrics").text)
    text = server.client.get("/metrics").text
    assert 'http_requests_total{handler="/v1/models/{id}",method="GET",status="2xx"} 1.0' in text
    assert 'http_requests_total{handler="none",method="GET",status="4xx"} 2.0' in text
    assert "BREW" not in text
    assert "xyz" not in text
