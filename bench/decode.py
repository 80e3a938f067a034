"""From the bytes of an exchange to its record: server-sent events and JSON, decoded when the run is over.

An event becomes a `Chunk` when it carries tokens. How many, the server says in the usage that it sends with
every event (`continuous_usage_stats`); a first event that only names the role carries none and does not
count. From a server that sends usage at the end only, or never, every event with text counts one token:
then the sum over the chunks need not be `output_tokens`, and `metrics` says so.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from twofour.bench import wire
from twofour.bench.records import Chunk, Record

_ERROR_LENGTH = 300


@dataclass
class Exchange:
    """What the client noted while the clock ran; times as in `Record`."""

    index: int
    scheduled_at: float = 0.0
    connecting_at: float | None = None
    connected_at: float | None = None
    sent_at: float | None = None
    headers_at: float | None = None
    status: int | None = None
    reads: list[tuple[float, bytes]] = field(default_factory=list)  # body bytes, without the framing
    done_at: float | None = None
    error: str | None = None
    reconnected: bool = False


def record(exchange: Exchange, api_key: str | None = None) -> Record:
    """The record of an exchange. Its `error` is `kind: detail`, without the key; `done_at`: it ended, well or not."""
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
    )
    if exchange.status is not None and exchange.status >= 400:
        known.error = _refusal(exchange, api_key)
        return known
    stream = _Stream(known)
    for at, line in _events(exchange.reads):
        stream.take(at, wire.hidden(line, api_key))
    known.coalesced_reads = _repeats([chunk.at for chunk in known.chunks])
    known.error = exchange.error or known.error or stream.complaint()
    return known


def _events(reads: list[tuple[float, bytes]]) -> Iterator[tuple[float, bytes]]:
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
        self._counted = 0  # tokens that the usage of earlier events has accounted for
        self._by_text = False  # an event with text came without usage
        self._terminated = False

    def take(self, at: float, line: bytes) -> None:
        if line == b"[DONE]":
            self._terminated = True
            return
        try:
            event = json.loads(line)
            self._event(at, event)
        except (ValueError, TypeError, AttributeError, KeyError, IndexError):
            self._record.error = f"protocol: an event is no completion: {line[:80].decode(errors='replace')}"

    def complaint(self) -> str | None:
        if not self._terminated and self._record.finish_reason is None:
            return "truncated: the stream ended without a finish reason"
        if not self._record.chunks:
            return "empty: the server sent no tokens"
        return None

    def _event(self, at: float, event: dict[str, Any]) -> None:
        if "error" in event:
            self._record.error = f"server: {_message(event)}"
            return
        usage = event.get("usage")
        if usage:
            self._usage(usage)
        for choice in event["choices"][:1]:
            self._choice(at, choice, usage)

    def _usage(self, usage: dict[str, Any]) -> None:
        self._record.prompt_tokens = usage["prompt_tokens"]
        self._record.output_tokens = usage["completion_tokens"]
        details = usage.get("prompt_tokens_details") or {}
        if details.get("cached_tokens") is not None:
            self._record.cached_tokens = details["cached_tokens"]

    def _choice(self, at: float, choice: dict[str, Any], usage: dict[str, Any] | None) -> None:
        self._record.finish_reason = choice.get("finish_reason") or self._record.finish_reason
        has_text = bool(choice.get("text"))
        self._by_text = self._by_text or (has_text and not usage)
        if self._by_text or not usage:
            tokens = int(has_text)
        else:
            tokens = usage["completion_tokens"] - self._counted
            self._counted = usage["completion_tokens"]
        if tokens > 0:
            self._record.chunks.append(Chunk(at, tokens))


def _repeats(times: list[float]) -> int:
    """How many reads brought more than one chunk."""
    return len({at for at, after in pairwise(times) if at == after})


def _refusal(exchange: Exchange, api_key: str | None) -> str:
    body = wire.hidden(b"".join(payload for _, payload in exchange.reads), api_key)
    try:
        detail = _message(json.loads(body))
    except ValueError:
        detail = body.decode(errors="replace").strip()
    return f"status {exchange.status}: {detail[:_ERROR_LENGTH]}"


def _message(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else body
    message = error.get("message") if isinstance(error, dict) else error
    return str(message)[:_ERROR_LENGTH]
