"""From the bytes of an exchange to its record: server-sent events and JSON, decoded when the run is over.

An event is one of the `Chunks` when it carries tokens: of text, of reasoning or of a tool call, which the record counts
by kind. How many, the server says in the usage that it sends with every event (`continuous_usage_stats`); a first event
that only names the role carries none and does not count. From a server that sends usage at the end only, or never,
every event with something to read counts one token: then the sum over the chunks need not be `output_tokens`, and
`metrics` says so. A response without any event is named for what it is, by `answers`.
"""

import json
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import numpy as np

from twofour.bench.load import answers, wire
from twofour.bench.load.records import Chunks, Record
from twofour.bench.load.spool import Block, Read, Spool

# What a delta of a chat, or a choice of a completion, may hold, by the field that holds it.
_KINDS = {
    "reasoning_content": "reasoning",
    "reasoning": "reasoning",
    "tool_calls": "tool call",
    "function_call": "tool call",
    "content": "text",
    "refusal": "text",
    "text": "text",
}


@dataclass(slots=True)
class Exchange:
    """What the client noted while the clock ran; times as in `Record`."""

    index: int
    scheduled_at: float = 0.0
    connecting_at: float | None = None
    connected_at: float | None = None
    sent_at: float | None = None
    headers_at: float | None = None
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)  # of the response, names in lower case
    spooled: list[Block] = field(default_factory=list)  # what came before the reads
    spooled_reads: int = 0  # in them
    reads: list[Read] = field(default_factory=list)  # body bytes, without the framing
    done_at: float | None = None
    error: str | None = None
    reconnected: bool = False
    held: bool = False

    @property
    def pieces(self) -> int:
        """How often something came."""
        return len(self.reads) + self.spooled_reads

    def arrived(self) -> Iterator[Read]:
        """All that came."""
        return chain(*self.spooled, self.reads)

    def spill(self, spool: Spool) -> None:
        """Hand over what is held, if there is much of it in all."""
        if self.reads and (block := spool.put(self.reads)):
            self.spooled.append(block)
            self.spooled_reads += block.reads
            self.reads = []


def record(exchange: Exchange, secrets: tuple[str, ...] = ()) -> Record:
    """The record of an exchange. Its `error` is `kind: detail`, without secrets. `done_at` is its end, good or bad."""
    known = Record(
        exchange.index,
        exchange.scheduled_at,
        connecting_at=exchange.connecting_at,
        connected_at=exchange.connected_at,
        sent_at=exchange.sent_at,
        headers_at=exchange.headers_at,
        done_at=exchange.done_at,
        status=exchange.status,
        reconnected=exchange.reconnected,
        held=exchange.held,
    )
    if exchange.status is not None and exchange.status >= 300:
        known.error = answers.refusal(exchange.status, exchange.headers, _body(exchange, secrets), secrets)
        return known
    stream = _Stream(known)
    for at, line in _events(exchange.arrived()):
        stream.take(at, wire.hidden(line, secrets))
    known.chunks = stream.chunks
    if stream.began:
        ending = stream.complaint()
    else:
        ending = answers.no_stream(exchange.status, exchange.headers, _body(exchange, secrets))
    known.error = exchange.error or known.error or ending
    return known


def _events(reads: Iterable[Read]) -> Iterator[tuple[float, bytes]]:
    """Every `data:` line, at the time of the read that completed it."""
    rest, at = b"", 0.0
    for at, payload in reads:
        *lines, rest = (rest + payload).split(b"\n")
        yield from ((at, line[5:].strip()) for line in lines if line.startswith(b"data:"))
    if rest.startswith(b"data:"):
        yield at, rest[5:].strip()


class _Stream:
    """The events of one response, taken in order and written into its record."""

    def __init__(self, into: Record) -> None:
        self._record = into
        self._at, self._tokens = array("d"), array("q")
        self.began = False
        self._counted = 0  # tokens that the usage of earlier events has accounted for
        self._by_text = False  # an event with text came without usage
        self._terminated = False

    def take(self, at: float, line: bytes) -> None:
        self.began = True
        if line == b"[DONE]":
            self._terminated = True
            return
        try:
            event = json.loads(line)
            self._event(at, event)
        except (ValueError, TypeError, AttributeError, KeyError, IndexError, RecursionError):
            self._record.error = f"protocol: an event is no completion: {answers.glimpse(line)}"

    @property
    def chunks(self) -> Chunks:
        return Chunks(np.array(self._at), np.array(self._tokens))

    def complaint(self) -> str | None:
        if not self._terminated and self._record.finish_reason is None:
            return answers.TRUNCATED
        if not self._at:
            return "empty: the server sent no tokens"
        return None

    def _event(self, at: float, event: dict[str, Any]) -> None:
        if event.get("error"):  # some send null with every event
            self._record.error = f"server: {answers.message(event)}"
            return
        so_far = self._usage(event.get("usage") or {})
        for choice in event["choices"][:1]:
            self._choice(at, choice, so_far)

    def _usage(self, usage: dict[str, Any]) -> int | None:
        """Note each number by itself, as servers leave some out. Returns the output tokens so far."""
        record, details = self._record, usage.get("prompt_tokens_details") or {}
        prompt, so_far = _count(usage, "prompt_tokens"), _count(usage, "completion_tokens")
        cached = _count(details, "cached_tokens")
        reasoning = _count(usage.get("completion_tokens_details") or {}, "reasoning_tokens")
        record.prompt_tokens = record.prompt_tokens if prompt is None else prompt
        record.output_tokens = record.output_tokens if so_far is None else so_far
        record.cached_tokens = record.cached_tokens if cached is None else cached
        record.reasoning_tokens = record.reasoning_tokens if reasoning is None else reasoning
        return so_far

    def _choice(self, at: float, choice: dict[str, Any], so_far: int | None) -> None:
        self._record.finish_reason = choice.get("finish_reason") or self._record.finish_reason
        kind = _kind(choice)
        has_text = kind is not None
        self._by_text = self._by_text or (has_text and so_far is None)
        if self._by_text or so_far is None:
            tokens = int(has_text)
        else:
            tokens = so_far - self._counted
            self._counted = so_far
        if tokens > 0:
            self._at.append(at)
            self._tokens.append(tokens)
            kinds, kind = self._record.kinds, kind or "text"
            kinds[kind] = kinds.get(kind, 0) + tokens


def _kind(choice: Mapping[str, Any]) -> str | None:
    """What an event brings; None: nothing that can be read."""
    held = choice.get("delta") or choice
    return next((kind for field_, kind in _KINDS.items() if held.get(field_)), None)


def _count(said: dict[str, Any], name: str) -> int | None:
    value = said.get(name)
    if value is not None and not (isinstance(value, int) and 0 <= value < 2**53):
        raise TypeError
    return value


def _body(exchange: Exchange, secrets: tuple[str, ...]) -> bytes:
    return wire.hidden(b"".join(payload for _, payload in exchange.arrived()), secrets)
