"""8 MiB of JSON that is made to be expensive: how long anybody else waits for it, and how much memory it takes.

    TWOFOUR_FAULT_SLACK=1 pytest -m slow tests/faults/test_hostile_bodies.py

prints the figures. TWOFOUR_HOSTILE_MODEL is another model to serve than the tiny one.
"""

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

Server = Any
Say = Callable[[str, float, float | None], None]
SLACK = float(os.environ.get("TWOFOUR_FAULT_SLACK", "10"))
BODY = 8 << 20
MODEL = Path(os.environ["TWOFOUR_HOSTILE_MODEL"]) if "TWOFOUR_HOSTILE_MODEL" in os.environ else None
TEXT, CHAT, TOKENIZE, DETOKENIZE = "/v1/completions", "/v1/chat/completions", "/tokenize", "/detokenize"
pytestmark = pytest.mark.slow


def filled(before: str, unit: str, after: str, size: int = BODY) -> bytes:
    """A document of that size, most of which is one thing again and again."""
    before, after = f'{{"model": "m", {before}', f"{after}}}"
    units = (size - len((before + after).encode())) // len(unit.encode())
    return (before + unit * units + after).encode()


def content(unit: str, size: int = BODY) -> bytes:
    return filled('"messages": [{"role": "user", "content": "', unit, '"}]', size)


def prompt(unit: str, size: int = BODY) -> bytes:
    return filled('"prompt": "', unit, '"', size)


def names(count: int) -> bytes:
    return json.dumps({"model": "m", "prompt": "a", **{f"field-{number}": 1 for number in range(count)}}).encode()


BIASES = json.dumps({"model": "m", "prompt": "a", "logit_bias": {str(token): "x" for token in range(100_000)}}).encode()
DEEP = ('{"model": "m", "prompt": ' + "[" * (BODY // 2 - 20) + "]" * (BODY // 2 - 20) + "}").encode()
PARTS = '"messages": [{"role": "user", "content": ['
MESSAGES = filled('"messages": [', '{"role":"user","content":""},', '{"role":"user","content":""}]', BODY // 70)
OBJECTS = filled('"prompt": "a", "max_tokens": 1, "metadata": [', "{},", "{}]", BODY // 32)
SCHEMA = '"prompt": "a", "response_format": {"type": "json_schema", "json_schema": {"schema": {"title": "'
HOSTILE = {  # what is asked, and the status of the answer
    "numbers as content": (CHAT, [filled(PARTS, "1,", "1]}]")], 413),
    "numbers as content, as many as are parsed": (CHAT, [filled(PARTS, "1,", "1]}]", 1 << 19)], 400),
    "objects as content": (CHAT, [filled(PARTS, "{},", "{}]}]")], 413),
    "wrong messages": (CHAT, [filled('"messages": [', '{"a":1},', "{}]")], 413),
    "100k wrong biases": (TEXT, [BIASES], 400),
    "4M prompt ids": (TEXT, [filled('"prompt": [', "1,", "1]")], 413),
    "prompt ids, as many as are parsed": (TEXT, [filled('"prompt": [', "1,", "1]", 1 << 19)], 400),
    "4M ids to detokenize": (DETOKENIZE, [filled('"tokens": [', "1,", "1]")], 413),
    "deep nesting": (TEXT, [DEEP], 413),
    "400k unknown names": (TEXT, [names(400_000)], 413),
    "100k unknown names": (TEXT, [names(100_000)], 400),
    "empty strings": (TEXT, [filled('"prompt": [', '"",', '""]')], 413),
    "nothing but quotes": (TEXT, [filled('"prompt": ', '"', "")], 400),
    "one string": (CHAT, [content("x")], 400),
    "one string of quotes": (TEXT, [prompt('\\"')], 400),
    "one string of commas": (TEXT, [prompt("[,:")], 413),
    "one emoji after letters": (
        CHAT,
        [filled('"messages": [{"role": "user", "content": "', "x", '\U0001f600"}]')],
        413,
    ),
    "letters with emoji, 4 at a time": (TEXT, [prompt("x" * 999 + "\U0001f600", BODY // 4)] * 4, 400),
    "special tokens": (CHAT, [content("<|im_end|>")], 400),
    "special tokens, 40 at a time": (CHAT, [content("<|im_end|>", BODY // 40)] * 40, 400),
    "4096 messages, 70 at a time": (CHAT, [MESSAGES] * 70, 400),
    "objects as metadata, 32 at a time": (TEXT, [OBJECTS] * 32, 200),
    "a schema of one string": (TEXT, [filled(SCHEMA, "é", '"}}}')], 400),
    "spaces to tokenize": (TOKENIZE, [prompt(" ")], 400),
    "spaces to tokenize, 32 at a time": (
        TOKENIZE,
        [prompt(" ", 250_000)] * 32,
        200 if MODEL else 400,
    ),  # 80 are a token, or each
    "words to tokenize, 32 at a time": (TOKENIZE, [prompt("The quick brown fox. ", 250_000)] * 32, 400),
    "emoji to tokenize, 8 at a time": (TOKENIZE, [prompt("\U0001f600", BODY // 8)] * 8, 400),
    "small bodies, 250 at a time": (CHAT, [filled(PARTS, "1,", "1]}]", BODY // 250)] * 250, 400),
}


def ask(server: Server, path: str, bodies: list[bytes]) -> set[int]:
    """All at a time; the statuses of the answers."""
    connections = [sent(server, path, body) for body in bodies]
    return {status_of(connection) for connection in connections}


def sent(server: Server, path: str, body: bytes) -> socket.socket:
    head = f"POST {path} HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    connection = socket.create_connection(server.address)
    connection.sendall(head.encode() + body)
    return connection


def status_of(connection: socket.socket) -> int:
    with connection:
        return int(connection.recv(65536).split(b" ", 2)[1])


def peak_bytes(server: Server) -> int:
    lines = Path(f"/proc/{server.process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def forget_peak(server: Server) -> None:
    Path(f"/proc/{server.process.pid}/clear_refs").write_text("5")


class Probe:
    """Asks for /health all the time, as a load balancer in a hurry does."""

    def __init__(self, server: Server) -> None:
        self._server, self._over = server, threading.Event()
        self.delays_s: list[float] = []
        self._thread = threading.Thread(target=self._work)

    def __enter__(self) -> "Probe":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _work(self) -> None:
        connection = HTTPConnection(*self._server.address, timeout=60 * SLACK)
        with closing(connection):
            while not self._over.is_set():
                begun = time.perf_counter()
                connection.request("GET", "/health")
                connection.getresponse().read()
                self.delays_s.append(time.perf_counter() - begun)
                time.sleep(0.002)


@pytest.fixture(scope="module")
def server(start: Any) -> Server:
    made = start(model=MODEL)
    for path, body in (
        (CHAT, filled('"max_tokens": 1, "messages": [{"role": "user", "content": "', "a", '"}]', 1 << 12)),
        (TOKENIZE, prompt("a ", 1 << 17)),
        (TEXT, prompt("a", 1 << 17)),
    ):
        ask(made, path, [body])  # threads are started, the template is compiled
    made.quiet_bytes = made.rss_bytes()
    return made


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_bodies(server: Server, say: Say, kind: str) -> None:
    path, bodies, status = HOSTILE[kind]
    forget_peak(server)
    with Probe(server) as probe:
        time.sleep(0.1)
        statuses = ask(server, path, bodies)
        time.sleep(0.1)
    took_bytes = peak_bytes(server) - server.quiet_bytes  # what is kept of those before counts, too
    say(f"{kind}: worst delay of /health in ms", max(probe.delays_s) * 1e3, 100)
    say(f"{kind}: memory that it took, over 8 MiB", took_bytes / BODY, None)
    assert took_bytes < 5 * BODY
    assert statuses == {status}
