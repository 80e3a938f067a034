"""What the load client writes down about each request, and nothing that could be derived.

All times are `time.perf_counter()` seconds of one host. `None` means that it never happened.
"""

from dataclasses import dataclass, field
from typing import NamedTuple


@dataclass(frozen=True)
class Request:
    """One planned request: when, and what to send."""

    index: int
    at_s: float  # seconds after the start of the run; 0.0 throughout for a closed loop
    prompt: str
    prompt_tokens: int  # as planned; the server's usage is in the record
    output_tokens: int  # max_tokens = min_tokens, end-of-text ignored


class Chunk(NamedTuple):
    """A server-sent event that carried tokens."""

    at: float
    tokens: int


@dataclass
class Record:
    """The life of one request."""

    index: int
    scheduled_at: float
    sent_at: float | None = None
    headers_at: float | None = None
    chunks: list[Chunk] = field(default_factory=list)
    done_at: float | None = None
    prompt_tokens: int | None = None  # from the server's usage, as the next two
    output_tokens: int | None = None
    cached_tokens: int | None = None
    reasoning_tokens: int | None = None  # of the output tokens, sent or not
    kinds: dict[str, int] = field(default_factory=dict)  # tokens of the chunks: "text", "reasoning", "tool call"
    finish_reason: str | None = None
    status: int | None = None
    error: str | None = None  # None: it ended well
    reconnected: bool = False
    connecting_at: float | None = None  # this and the next: None where the connection was open already
    connected_at: float | None = None
