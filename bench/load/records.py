"""What the load client writes down about each request, and nothing that could be derived.

All times are `time.perf_counter()` seconds of one host. `None` means that it never happened.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import ArrayLike, NDArray


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


class Chunks(Sequence[Chunk]):
    """The chunks of one answer, in the order of their times, as two arrays: a long run has millions. Never changed.

    at: float64. tokens: whole numbers, of the smallest kind that holds them.
    """

    def __init__(self, at: ArrayLike = (), tokens: ArrayLike = ()) -> None:
        self.at: NDArray[np.float64] = np.asarray(at, np.float64)
        self.tokens: NDArray[Any] = _small(np.asarray(tokens))
        if self.at.shape != self.tokens.shape or self.at.ndim != 1:
            raise ValueError(f"{self.at.shape} times do not fit {self.tokens.shape} counts of tokens")

    @classmethod
    def of(cls, chunks: Iterable[tuple[float, int]]) -> "Chunks":
        pairs = list(chunks)
        return cls([at for at, _ in pairs], [tokens for _, tokens in pairs])

    @cached_property
    def total(self) -> int:
        """All their tokens."""
        return int(self.tokens.sum())

    def plain(self, started_at: float) -> list[list[float]]:
        """As JSON has them: seconds after the start, and tokens."""
        pairs = zip((self.at - started_at).tolist(), self.tokens.tolist(), strict=True)
        return [[at, tokens] for at, tokens in pairs]

    def __len__(self) -> int:
        return len(self.at)

    @overload
    def __getitem__(self, key: int) -> Chunk: ...
    @overload
    def __getitem__(self, key: slice) -> "Chunks": ...
    def __getitem__(self, key: int | slice) -> "Chunk | Chunks":
        if isinstance(key, slice):
            return Chunks(self.at[key], self.tokens[key])
        return Chunk(float(self.at[key]), int(self.tokens[key]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Chunks.of({list(self)})"


def _small(tokens: NDArray[Any]) -> NDArray[Any]:
    """uint8, which is enough for almost all servers; int64 where one is larger."""
    if tokens.dtype == np.uint8:
        return tokens
    fits = not tokens.size or (tokens.min() >= 0 and tokens.max() < 256)
    return tokens.astype(np.uint8 if fits else np.int64)


TIMES = ("scheduled_at", "connecting_at", "connected_at", "sent_at", "headers_at", "done_at")  # of a Record


@dataclass(slots=True)
class Record:
    """The life of one request."""

    index: int
    scheduled_at: float
    sent_at: float | None = None
    headers_at: float | None = None
    chunks: Chunks = field(default_factory=Chunks)
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
