"""Server-sent events: one JSON document in each, always an end, and an error that clients recognise as one."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from twofour.serve.edge.errors import RequestError
from twofour.serve.openai.answers.choice import Delta
from twofour.serve.openai.answers.dumps import dumps, text
from twofour.serve.openai.answers.generation import Generation
from twofour.serve.openai.answers.replies import Envelope, Usage, Writer
from twofour.serve.openai.protocol import StreamOptions

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def event(document: str) -> bytes:
    return b"data: " + document.encode() + b"\n\n"


def error_event(error: RequestError) -> bytes:
    return b"data: " + error.body() + b"\n\n"


@dataclass
class Stream:
    """The events of one generation, in order."""

    envelope: Envelope
    writer: Writer
    options: StreamOptions
    keep_alive_s: float | None  # of silence before a comment is sent
    written: Callable[..., Awaitable[bytes]]  # runs a function of deltas, in a thread if that takes long
    _opened: set[int] = field(default_factory=set)

    async def events(self, generation: Generation) -> AsyncIterator[bytes]:
        every_time = self.options.include_usage and self.options.continuous_usage_stats
        while not generation.done:
            try:
                async with asyncio.timeout(self.keep_alive_s):
                    choices = await generation.advance()
            except TimeoutError:
                yield KEEP_ALIVE
                continue
            deltas = [delta for choice in choices if (delta := choice.take()) is not None]
            usage = usage_of(generation) if every_time else None
            if data := await self.written(deltas, self._events, deltas, usage):
                yield data
        if self.options.include_usage:
            yield event(text(self._document([], usage_of(generation))))

    def _events(self, deltas: Sequence[Delta], usage: Usage | None) -> bytes:
        write = dumps if any(delta.logprobs or delta.prompt_logprobs for delta in deltas) else text
        return b"".join(event(write(self._document([choice], usage))) for choice in self._news(deltas))

    def _news(self, deltas: Sequence[Delta]) -> Iterator[Any]:
        for delta in deltas:
            if delta.index not in self._opened:
                self._opened.add(delta.index)
                yield from self.writer.opening(delta.index)
            yield from self.writer.chunks(delta)

    def _document(self, choices: Sequence[Any], usage: Usage | None) -> dict[str, Any]:
        document = {**self.envelope, "choices": choices}
        return document if usage is None else {**document, "usage": usage}


def usage_of(generation: Generation) -> Usage:
    prompt_tokens = generation.job.prompt_tokens
    completion_tokens = sum(choice.generated_tokens for choice in generation.choices)
    cached = sum(choice.cached_tokens for choice in generation.choices[:: generation.job.n])
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
        "prompt_tokens_details": {"cached_tokens": cached},
    }
