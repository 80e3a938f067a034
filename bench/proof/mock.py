"""A server that logs the truth and misbehaves on request, to prove the client's numbers.

It speaks streamed `/v1/completions` and `/v1/models` with one word per token, in a process of its own, so that it takes
no turn from the client's event loop. What it sent and when stands in `Mock.served`, one entry per request that it
heard, once it has ended. It keeps no promise about speed: compare counts and orders with it, and times only within what
the machine allows.
"""

import asyncio
import json
import signal
import ssl
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any, Literal, cast

from twofour.bench.load.client import loop_factory, no_garbage_collection

_END_S = 30.0


@dataclass(frozen=True)
class Script:
    """How the server behaves; the defaults are a well-behaved one."""

    first_token_s: float = 0.0
    token_s: float = 0.0
    tokens_per_chunk: int = 1
    chunks_per_write: int = 1  # more: the chunks come together, in one read
    role_chunk: bool = False  # an empty first event, before any token
    usage: Literal["every", "last", "never"] = "every"
    stop_after: int | None = None  # tokens: an early end, whatever was asked for
    reset_after: int | None = None  # chunks: the connection is cut
    hang_after: int | None = None  # chunks: nothing follows
    refuse_every: int | None = None  # every so many requests: status 503
    cached_tokens: int | None = None
    drop_reused: bool = False  # a second request on a connection: closed without an answer
    close_after: bool = False  # closed after every response, unannounced
    certificate: str | None = None  # a PEM file, with its key: TLS
    answers: Sequence[str] = ()  # whole responses, which are given in turn instead of streams


@dataclass
class Served:
    """What happened to one request, by the server's clock, which is the client's on the same host."""

    received_at: float
    path: str
    headers: dict[str, str]  # by names in lower case
    body: dict[str, Any]
    status: int = 200
    written: list[tuple[float, int]] = field(default_factory=list)  # a chunk was written: when, tokens


@dataclass
class Mock:
    """The mock as its user sees it; what happened is known when it has ended."""

    url: str
    served: list[Served] = field(default_factory=list)
    connections: int = 0


class Server:
    def __init__(self, script: Script) -> None:
        self.script = script
        self.served: list[Served] = []
        self.connections = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self) -> None:
        """Print where it listens, and serve until the input ends."""
        tls = self._tls()
        server = await asyncio.start_server(self._connection, "127.0.0.1", 0, limit=2**24, ssl=tls)
        print(f"{'https' if tls else 'http'}://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
        await asyncio.to_thread(sys.stdin.read)
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks)

    def _tls(self) -> ssl.SSLContext | None:
        if self.script.certificate is None:
            return None
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.script.certificate)
        return context

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._tasks.add(cast("asyncio.Task[None]", asyncio.current_task()))
        with suppress(asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            heard = 0
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(int(_fields(head).get("content-length", 0)))
                heard += 1
                if self.script.drop_reused and heard > 1:
                    break
                await self._answer(head, body, writer)
                if self.script.close_after:
                    break
        writer.close()

    async def _answer(self, head: bytes, body: bytes, writer: asyncio.StreamWriter) -> None:
        if head.startswith(b"GET "):
            return _plain(writer, 200, {"object": "list", "data": [{"id": "mock", "object": "model"}]})
        served = Served(perf_counter(), head.split()[1].decode(), _fields(head), json.loads(body))
        self.served.append(served)
        every = self.script.refuse_every
        if every and len(self.served) % every == 0:
            served.status = 503
            return _plain(writer, 503, {"error": {"message": "the mock refuses", "code": 503}})
        if answers := self.script.answers:
            return writer.write(answers[(len(self.served) - 1) % len(answers)].encode())
        writer.write(_STREAM_HEAD)
        await self._stream(served, writer)

    async def _stream(self, served: Served, writer: asyncio.StreamWriter) -> None:
        script, total = self.script, served.body["max_tokens"]
        if script.role_chunk:
            writer.write(_event(self._piece(served, 0, 0)))
        tokens, pending = min(total, script.stop_after or total), b""
        for number, sent in enumerate(range(0, tokens, script.tokens_per_chunk)):
            if number == script.reset_after:
                writer.transport.abort()
                raise ConnectionResetError
            if number == script.hang_after:
                await asyncio.Event().wait()  # until the mock is stopped
            fresh = min(script.tokens_per_chunk, tokens - sent)
            await asyncio.sleep(script.token_s * fresh if sent else script.first_token_s)
            pending += _event(self._piece(served, fresh, sent + fresh))
            served.written.append((perf_counter(), fresh))
            if len(served.written) % script.chunks_per_write == 0:
                writer.write(pending)
                pending = b""
                await writer.drain()
        writer.write(pending + self._last(served, tokens))
        await writer.drain()

    def _piece(self, served: Served, fresh: int, so_far: int) -> dict[str, Any]:
        total = served.body["max_tokens"]
        ends = so_far == min(total, self.script.stop_after or total)
        reason = ("length" if so_far == total else "stop") if ends else None
        choice = {"index": 0, "text": " word" * fresh, "finish_reason": reason}
        usage = {"usage": self._usage(served, so_far)} if self.script.usage == "every" else {}
        return {"object": "text_completion", "choices": [choice], **usage}

    def _last(self, served: Served, tokens: int) -> bytes:
        usage = {"object": "text_completion", "choices": [], "usage": self._usage(served, tokens)}
        done = _chunk(b"data: [DONE]\n\n") + _chunk(b"")
        return done if self.script.usage == "never" else _event(usage) + done

    def _usage(self, served: Served, so_far: int) -> dict[str, Any]:
        prompt = len(served.body["prompt"].split())
        usage = {"prompt_tokens": prompt, "completion_tokens": so_far, "total_tokens": prompt + so_far}
        cached = self.script.cached_tokens
        return usage if cached is None else {**usage, "prompt_tokens_details": {"cached_tokens": cached}}


@contextmanager
def serving(script: Script) -> Iterator[Mock]:
    """Run a mock in a process of its own for the length of a `with` block."""
    command = [sys.executable, "-P", "-m", "twofour.bench.proof.mock", json.dumps(asdict(script))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        mock = Mock(process.stdout.readline().strip())
        try:
            yield mock
        finally:
            told = json.loads(process.communicate(timeout=_END_S)[0])
            mock.served = [Served(**served) for served in told["served"]]
            mock.connections = told["connections"]


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # its user's Ctrl-C is none of its business
    server = Server(Script(**json.loads(sys.argv[1])))
    with no_garbage_collection(), asyncio.Runner(loop_factory=loop_factory()) as runner:
        runner.run(server.serve())
    told = json.dumps({"served": [asdict(served) for served in server.served], "connections": server.connections})
    with open(1, "w", closefd=False) as out:  # buffered, which writes all: stdout itself may not be (PYTHONUNBUFFERED)
        out.write(told)


_STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _fields(head: bytes) -> dict[str, str]:
    lines = [line.partition(":") for line in head.decode("latin-1").split("\r\n")[1:]]
    return {name.lower(): value.strip() for name, colon, value in lines if colon}


def _event(data: dict[str, Any]) -> bytes:
    return _chunk(b"data: " + json.dumps(data).encode() + b"\n\n")


def _chunk(payload: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def _plain(writer: asyncio.StreamWriter, status: int, body: dict[str, Any]) -> None:
    payload = json.dumps(body).encode()
    head = f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(payload)}\r\n\r\n"
    writer.write(head.encode() + payload)


if __name__ == "__main__":
    main()
