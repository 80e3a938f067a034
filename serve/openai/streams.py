"""Server-sent events: one JSON document a line, an end that is always said, an error that looks like one."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from twofour.serve.edge.errors import RequestError
from twofour.serve.openai.choice import Choice
from twofour.serve.openai.generation import Generation
from twofour.serve.openai.protocol import StreamOptions
from twofour.serve.openai.replies import Head, Usage, Writer

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


def event(document: object) -> bytes:
    # ASCII only: some clients split lines at U+2028 as well.
    return b"data: " + json.dumps(document, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"


def error_event(error: RequestError) -> bytes:
    return b"data: " + error.body() + b"\n\n"


@dataclass
class Stream:
    """The events of one generation, in order."""

    head: Head
    writer: Writer
    options: StreamOptions
    keep_alive_s: float | None  # of silence, before a comment says that somebody is there

    async def events(self, generation: Generation) -> AsyncIterator[bytes]:
        opened: set[int] = set()
        every_time = self.options.include_usage and self.options.continuous_usage_stats
        while not generation.done:
            try:
                async with asyncio.timeout(self.keep_alive_s):
                    choices = await generation.advance()
            except TimeoutError:
                yield KEEP_ALIVE
                continue
            documents = [*self._news(choices, opened)]
            usage = usage_of(generation) if every_time else None
            if documents:
                yield b"".join(event(self._document([choice], usage)) for choice in documents)
        if self.options.include_usage:
            yield event(self._document([], usage_of(generation)))

    def _news(self, choices: Sequence[Choice], opened: set[int]) -> Iterator[Any]:
        for choice in choices:
            delta = choice.take()
            if delta is None:
                continue
            if choice.index not in opened:
                opened.add(choice.index)
                yield from self.writer.opening(choice.index)
            yield from self.writer.chunks(delta)

    def _document(self, choices: Sequence[Any], usage: Usage | None) -> dict[str, Any]:
        document = {**self.head, "choices": choices}
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
