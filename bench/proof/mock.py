"""A server that logs the truth and misbehaves on request, to prove the client's numbers.

It speaks streamed completions, chat and `/v1/models`, with one word per token, in a process of its own
(`mock_server`), so that it takes no turn from the client's event loop. With `Script.steps` it is a server whose
capacity is known: requests share its steps (`batching`), and wait where they are too many; with `Script.machine` they
share the pages of its cache, too (`paged`). What it sent and when stands
in `Mock.served`, one entry per request that it heard, once it has ended. It keeps no promise about speed: compare
counts and orders with it, and times only within what the machine allows.
"""

import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from twofour.bench.proof.batching import Steps
from twofour.bench.proof.paged import Machine
from twofour.prune.errors import ServerError

_END_S = 30.0
Delta = Literal["content", "reasoning", "reasoning_content", "tool_calls"]


@dataclass(frozen=True)
class Script:
    """How the server behaves; the defaults are a well-behaved one."""

    first_token_s: float = 0.0
    token_s: float = 0.0
    steps: Steps | None = None  # instead of the two above: how long things take depends on what is under way
    machine: Machine | None = None  # instead of those, too: the same with a paged cache, a log of steps and /metrics
    distance_s: float = 0.0  # to the server and back; connecting takes none
    tokens_per_chunk: int = 1
    chunks_per_write: int = 1  # more: the chunks come together, in one read
    role_chunk: bool = False  # an empty first event, before any token
    deltas: Sequence[Delta] = ("content",)  # of a chat: what the chunks are, in order; the last goes on
    usage: Literal["every", "last", "never"] = "every"
    stop_after: int | None = None  # tokens: an early end, whatever was asked for
    reset_after: int | None = None  # chunks: the connection is cut
    hang_after: int | None = None  # chunks: nothing follows
    broken_every: int = 1  # of so many requests one is cut or hangs
    refuse_every: int | None = None  # every so many requests: status 503
    refused_fields: Sequence[str] = ()  # of a body: status 400, as from servers that know OpenAI's API only
    cached_tokens: int | None = None
    drop_reused: bool = False  # a second request on a connection: closed without an answer
    close_after: bool = False  # closed after every response, unannounced
    certificate: str | None = None  # a PEM file, with its key: TLS
    remembers: bool = True  # what it has written, until its end; else only while it answers
    answers: Sequence[str] = ()  # whole responses, which are given in turn instead of streams


@dataclass
class Served:
    """What happened to one request, by the server's clock, which is the client's on the same host."""

    received_at: float
    path: str
    headers: dict[str, str]  # names in lower case
    body: dict[str, Any]
    status: int = 200
    written: list[tuple[float, int]] = field(default_factory=list)  # a chunk was written: when, tokens

    @property
    def authorization(self) -> str | None:
        return self.headers.get("authorization")

    @property
    def chat(self) -> bool:
        return "messages" in self.body

    @property
    def prompt(self) -> str:
        """All that the model is to read."""
        said = [str(message.get("content") or "") for message in self.body.get("messages", ())]
        return "\n".join(said) if self.chat else str(self.body["prompt"])


@dataclass
class Mock:
    """The mock as its user sees it; what happened is known when it has ended."""

    url: str
    served: list[Served] = field(default_factory=list)
    connections: int = 0


@contextmanager
def serving(script: Script, cpu: int | None = None) -> Iterator[Mock]:
    """Run a mock in a process of its own, if asked for on one CPU, for the length of a `with` block."""
    module = "twofour.bench.proof.mock_server"
    command = [sys.executable, "-P", "-m", module, json.dumps(asdict(script)), json.dumps(cpu)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        mock = Mock(process.stdout.readline().strip())
        try:
            yield mock
        finally:
            said, _ = process.communicate(timeout=_END_S)
            if process.returncode:
                raise ServerError(f"the mock ended with status {process.returncode}; what it said is above")
            told = json.loads(said)
            mock.served = [Served(**served) for served in told["served"]]
            mock.connections = told["connections"]
