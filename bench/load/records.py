"""What the load client writes down about each request, and nothing that could be derived.

All times are `time.perf_counter()` seconds of one host. `None` means that it never happened.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Message(NamedTuple):
    """What was said in a conversation before the prompt."""

    role: str  # of OpenAI's API: system, user or assistant
    content: str


class Part(NamedTuple):
    """Tokens at the beginning of a prompt of which there is no text. Parts of one name have the same tokens."""

    name: str
    tokens: int


@dataclass(frozen=True)
class Request:
    """One planned request: when, and what to send."""

    index: int
    at_s: float  # seconds after the start of the run; 0.0 for a closed loop and for the later turns of a session
    prompt: str
    prompt_tokens: int | None  # as planned, all that is sent; None: a text of unknown length. The record has the usage
    output_tokens: int  # max_tokens = min_tokens, end-of-text ignored
    after: int | None = None  # the turn before it in its session: it waits for the end of that one, and then
    think_s: float = 0.0  # for so long
    history: Sequence[Message] = ()
    family: str | None = None  # requests of one family begin with the same words of the nonce; None: like no other
    parts: Sequence[Part] = ()  # of a sketch, which has no texts: what others may begin with, too


class Chunk(NamedTuple):
    """A server-sent event that carried tokens."""

    at: float
    tokens: int


TIMES = ("scheduled_at", "connecting_at", "connected_at", "sent_at", "headers_at", "done_at")  # of a Record


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
    held: bool = False  # it left late, as so many were under way as may be
