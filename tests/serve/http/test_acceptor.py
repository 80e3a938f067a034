"""Connections at the limit of open files, and TLS handshakes that do not end."""

import asyncio
import contextlib
import errno
import json
import shutil
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from twofour.serve.edge.auth import digest
from twofour.serve.edge.harden import EdgeConfig
from twofour.serve.http import acceptor, server
from twofour.serve.http.acceptor import Acceptor
from twofour.serve.http.crowd import Crowd
from twofour.serve.http.server import Tls

HELD = 3


@pytest.fixture
def small(launch: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """With a key and a few connections."""
    monkeypatch.setattr(server, "connection_limit", lambda: HELD)
    made = launch(launch.engine(hold_after=1), edge=EdgeConfig(api_keys=(digest(b"k"),)))
    made.client.headers["Authorization"] = "Bearer k"
    return made


def ask(made: Any, path: str, *lines: str) -> bytes:
    with socket.create_connection(made.address, timeout=10) as connection:
        head = "\r\n".join((f"GET {path} HTTP/1.1", "Host: h", "Connection: close", *lines))
        connection.sendall(f"{head}\r\n\r\n".encode())
        answer = b""
        while data := connection.recv(65536):
            answer += data
    return answer


def test_silent_clients_keep_nobody_out(small: Any) -> None:
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(small.address, timeout=10)) for _ in range(5 * HELD)]
        assert ask(small, "/v1/models", "Authorization: Bearer k").startswith(b"HTTP/1.1 200")
        assert silent[0].recv(1) == b"", "the first that came is the first that goes"


def test_where_all_are_at_work_only_probes_are_answered(small: Any) -> None:
    """In OpenAI's shape, with the time to try again; and a wrong key is told so first."""
    body = {"model": "m", "prompt": "hi", "max_tokens": 100, "stream": True}
    with contextlib.ExitStack() as stack:
        streams = [stack.enter_context(small.client.stream("POST", "/v1/completions", json=body)) for _ in range(HELD)]
        assert ask(small, "/health").startswith(b"HTTP/1.1 200")
        assert ask(small, "/ready").startswith(b"HTTP/1.1 200")
        head, _, content = ask(small, "/v1/models", "Authorization: Bearer k").partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503") and b"retry-after: 1" in head.lower()
        assert set(json.loads(content)["error"]) == {"message", "type", "param", "code"}
        assert json.loads(content)["error"]["code"] == "engine_overloaded"
        assert ask(small, "/v1/models").startswith(b"HTTP/1.1 401")
        small.engine.release()
        assert all(list(stream.iter_lines())[-2] == "data: [DONE]" for stream in streams)
    small.control()


@pytest.fixture
def pair(tmp_path: Path) -> Tls:
    openssl, pem = shutil.which("openssl") or pytest.skip("needs openssl"), tmp_path / "pem"
    command = f"{openssl} req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=h"
    subprocess.run([*command.split(), "-keyout", str(pem), "-out", str(pem)], check=True, capture_output=True)
    return Tls(pem)


def test_a_handshake_that_does_not_end_is_not_waited_for(
    launch: Any, pair: Tls, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acceptor, "HANDSHAKE_S", 0.1)
    made = launch(tls=pair)
    for begun in (b"", b"\x16\x03\x01", b"GET / HTTP/1.1\r\n\r\n"):
        with socket.create_connection(made.address, timeout=10) as connection:
            connection.sendall(begun)
            with contextlib.suppress(ConnectionError):
                while connection.recv(65536):
                    pass


def test_handshakes_count_as_connections(launch: Any, pair: Tls, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "connection_limit", lambda: HELD)
    made = launch(tls=pair)
    with contextlib.ExitStack() as stack:
        silent = [stack.enter_context(socket.create_connection(made.address, timeout=10)) for _ in range(HELD + 1)]
        with contextlib.suppress(ConnectionError):
            assert silent[0].recv(1) == b""


class Listener:
    """A system that has no file for a connection at first."""

    def __init__(self, kept: socket.socket) -> None:
        self._kept, self.failures = kept, 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._kept, name)

    def accept(self) -> Any:
        if self.failures < 3:
            self.failures += 1
            raise OSError(errno.EMFILE, "too many open files")
        return self._kept.accept()


def test_no_file_for_a_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    """It rests, makes room, and tries again; it does not spin."""
    monkeypatch.setattr(acceptor, "REST_S", 0.01)

    class Visitor:
        out = False

        def turn_out(self) -> None:
            self.out = True

    async def scene() -> None:
        with socket.create_server(("127.0.0.1", 0)) as kept, socket.create_connection(kept.getsockname()):
            made, visitor, arrived = Crowd(10), Visitor(), asyncio.Event()
            made.enter(visitor)
            listener: Any = Listener(kept)
            monkeypatch.setattr(Acceptor, "_take_in", lambda self, connection: (connection.close(), arrived.set()))
            accepting = Acceptor(listener, made, lambda: None, None)  # type: ignore[arg-type, return-value]
            await asyncio.wait_for(arrived.wait(), 10)
            accepting.close()
            assert visitor.out and listener.failures == 3

    asyncio.run(scene())
