"""The process of a mock: HTTP heard, answers paced by the script or by an engine, the truth written down."""

import asyncio
import json
import os
import signal
import ssl
import sys
from collections.abc import Callable
from dataclasses import asdict, replace
from time import perf_counter
from typing import Any, cast

from twofour.bench.load.client import loop_factory, no_garbage_collection
from twofour.bench.proof.answer import Answer
from twofour.bench.proof.batching import Steps
from twofour.bench.proof.mock import Script, Served
from twofour.bench.proof.mock_engine import engine_of, models
from twofour.bench.proof.paged import Machine
from twofour.serve.http.crowd import raise_open_files

_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
_BACKLOG = 4096
_GLANCES: dict[str, Any] = {"/v1/models": models({}), "/health": {}, "/ready": {}}


class Server:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.served: list[Served] = []
        self.connections = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.engine = engine_of(script.steps, script.machine)

    async def serve(self) -> None:
        """Print where it listens, and serve until the input ends."""
        loop, tls = asyncio.get_running_loop(), _tls(self.script.certificate)
        server = await loop.create_server(lambda: Connection(self), "127.0.0.1", 0, backlog=_BACKLOG, ssl=tls)
        print(f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
        if self.engine:
            self.tasks.add(asyncio.create_task(self.engine.run()))
        await asyncio.to_thread(sys.stdin.read)
        server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


class Connection(asyncio.Protocol):
    """One client. Requests come one after another, each when the answer before it has ended."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._script = server.script
        self._transport: asyncio.Transport
        self._buffer = b""
        self._heard = 0
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._server.connections += 1

    def connection_lost(self, error: Exception | None) -> None:
        if self._task:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        head, mark, rest = self._buffer.partition(b"\r\n\r\n")
        if not mark:
            return
        headers = _headers(head)
        length = int(headers.get("content-length", 0))
        if len(rest) >= length:
            self._buffer = rest[length:]
            self._later(lambda: self._request(head, headers, rest[:length]))

    def write(self, data: bytes) -> None:
        self._later(lambda: self._transport.write(data))

    def _later(self, work: Callable[[], Any]) -> None:
        """Half the distance later."""
        if self._script.distance_s:
            asyncio.get_running_loop().call_later(self._script.distance_s / 2, work)
        else:
            work()

    def _request(self, head: bytes, headers: dict[str, str], body: bytes) -> None:
        self._heard += 1
        verb, path = head.split(b" ", 2)[:2]
        if self._script.drop_reused and self._heard > 1:
            self._transport.close()
        elif verb == b"GET":
            self.write(self._glance(path.decode().partition("?")[0]))
        elif not path.partition(b"?")[0].endswith(b"/completions"):
            self.write(_plain(404, {}))
        else:
            self._ask(Served(perf_counter(), path.decode(), headers, json.loads(body)))

    def _glance(self, path: str) -> bytes:
        told = self._server.engine and self._server.engine.told(path)
        if isinstance(told, str):
            return _whole(200, told.encode(), "text/plain; version=0.0.4")
        found = told or _GLANCES.get(path)
        return _plain(404, {}) if found is None else _plain(200, found)

    def _ask(self, served: Served) -> None:
        script, heard = self._script, self._server.served
        heard.append(served)
        unknown = [name for name in script.refused_fields if name in served.body]
        if unknown:
            self._refuse(served, 400, f"unknown field {unknown[0]}")
        elif script.refuse_every and len(heard) % script.refuse_every == 0:
            self._refuse(served, 503, "the mock refuses")
        elif script.answers:
            self.write(script.answers[(len(heard) - 1) % len(script.answers)].encode())
            self._ended()
        else:
            broken = len(heard) % script.broken_every == 0
            script = script if broken else replace(script, reset_after=None, hang_after=None)
            self._task = asyncio.create_task(self._answer(script, served))
            self._server.tasks.add(self._task)
            self._task.add_done_callback(self._server.tasks.discard)

    def _refuse(self, served: Served, status: int, why: str) -> None:
        served.status = status
        self.write(_plain(status, {"error": {"message": why, "code": status}}))
        self._ended()

    async def _answer(self, script: Script, served: Served) -> None:
        streamed = bool(served.body.get("stream"))
        answer, engine = Answer(script, served, self.write if streamed else lambda _: None), self._server.engine
        if engine and not engine.holds(answer):
            return self._refuse(served, 400, "the cache never holds that many tokens")
        if streamed:
            self.write(_STREAM_HEAD)
            answer.begin()
        await (engine.answer(answer) if engine else _paced(script, answer))
        if answer.cut:
            return self._transport.abort()
        answer.end()
        if not streamed:
            self.write(_plain(200, answer.whole()))
        if not script.remembers:
            served.written.clear()
        self._ended()

    def _ended(self) -> None:
        if self._script.close_after:
            self._later(self._transport.close)


async def _paced(script: Script, answer: Answer) -> None:
    """Every token at the time that the script says."""
    due_at = perf_counter()
    while not answer.complete:
        if answer.chunks == script.hang_after:
            await asyncio.Event().wait()  # until the mock is stopped
        fresh = answer.next_chunk()
        due_at += script.token_s * fresh if answer.sent else script.first_token_s
        await asyncio.sleep(max(0.0, due_at - perf_counter()))
        for _ in range(fresh):
            answer.token()


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its user's Ctrl-C is none of its business
    raise_open_files()
    words, cpu = json.loads(sys.argv[1]), json.loads(sys.argv[2])
    steps = Steps(**words["steps"]) if words["steps"] else None
    machine = Machine(**words["machine"]) if words["machine"] else None
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    with no_garbage_collection(), asyncio.Runner(loop_factory=loop_factory()) as runner:
        server = Server(Script(**words | {"steps": steps, "machine": machine}))
        runner.run(server.serve())
    told = json.dumps({"served": [asdict(served) for served in server.served], "connections": server.connections})
    with open(1, "w", closefd=False) as out:  # buffered, which writes all: stdout itself may not be (PYTHONUNBUFFERED)
        out.write(told)


def _tls(certificate: str | None) -> ssl.SSLContext | None:
    if certificate is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    return context


def _headers(head: bytes) -> dict[str, str]:
    lines = (line.partition(b":") for line in head.split(b"\r\n")[1:])
    return {name.decode("latin-1").strip().lower(): value.decode("latin-1").strip() for name, _, value in lines}


def _plain(status: int, body: dict[str, Any]) -> bytes:
    return _whole(status, json.dumps(body).encode(), "application/json")


def _whole(status: int, payload: bytes, kind: str) -> bytes:
    head = f"HTTP/1.1 {status} -\r\nContent-Type: {kind}\r\nContent-Length: {len(payload)}\r\n\r\n"
    return head.encode() + payload


if __name__ == "__main__":
    main()
