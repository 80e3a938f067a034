"""The one owner of a request's work: it ends when the work, the client, the deadline or the drain ends it."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from twofour.serve.edge.errors import RequestError, internal, not_ready, timed_out
from twofour.serve.edge.limits import Reserve, Settle
from twofour.serve.openai.choice import Choice, Delta
from twofour.serve.openai.generation import Generation, Job
from twofour.serve.openai.protocol import GenerationRequest, StreamOptions
from twofour.serve.openai.replies import Head, Reply, Writer
from twofour.serve.openai.serving import Serving
from twofour.serve.openai.spans import span_of
from twofour.serve.openai.streams import DONE, HEADERS, Stream, error_event, usage_of

log = logging.getLogger("twofour.openai")


class Stalled(Exception):
    """The client keeps the connection and reads nothing."""


class Answer(Response):
    """Generates while it answers. Nothing is promised to the client before the first token is there."""

    def __init__(self, serving: Serving, job: Job, writer: Writer, body: GenerationRequest) -> None:
        super().__init__()
        self._serving, self._job, self._writer = serving, job, writer
        self._options = (body.stream_options or StreamOptions()) if body.stream else None
        self._started = False
        self._state: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._state = scope["state"]
        work = asyncio.create_task(self._work(scope, receive, send))
        left = asyncio.create_task(client_left(receive))
        expired = asyncio.create_task(self._serving.lifecycle.expired.wait())
        tasks = (work, left, expired)
        try:
            await asyncio.wait(tasks, timeout=self._serving.config.deadline_s, return_when=asyncio.FIRST_COMPLETED)
            gone, over = left.done(), expired.done()
        finally:
            await cancel(tasks)
        if not work.cancelled():
            return work.result()
        if not gone:
            await self._give_up(send, over)

    async def _work(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._options is None:
            await self._whole(scope, receive, send)
        else:
            await self._stream(send, self._options)

    async def _whole(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._generation() as generation:
            while not generation.done:
                await generation.advance()
        choices = [self._writer.whole(last_word(choice)) for choice in generation.choices]
        reply: Reply = {**self._head(self._writer.kind), "choices": choices, "usage": usage_of(generation)}
        content = json.dumps(reply, allow_nan=False, separators=(",", ":"))
        await Response(content, media_type="application/json")(scope, receive, send)

    async def _stream(self, send: Send, options: StreamOptions) -> None:
        head, keep_alive_s = self._head(self._writer.chunk_kind), self._serving.config.keep_alive_s
        stream = Stream(head, self._writer, options, keep_alive_s)
        try:
            async with self._generation() as generation:
                async for data in stream.events(generation):
                    await self._write(send, data)
        except Stalled:
            self._serving.metrics.stalled_streams.inc()
            return
        except Exception as error:
            if not self._started:
                raise
            await self._write(send, error_event(self._shown(error)))
        await self._end(send)

    @asynccontextmanager
    async def _generation(self) -> AsyncIterator[Generation]:
        serving = self._serving
        with serving.admission.admitted(self._job.prompts):
            settle = self._reserve()
            decode, spell = serving.vocabulary.decode, serving.vocabulary.spelling.said
            generation = Generation(self._job, serving.engine, serving.metrics, decode, spell)
            try:
                async with generation:
                    yield generation
            finally:  # however it ended
                settle(generation.used_tokens)
                self._state["span"] = span_of(self._writer.kind, serving.config.served_model_name, generation)

    def _reserve(self) -> Settle:
        """Of the key's tokens in a minute, all that this request may use, to be settled at its end."""
        reserve: Reserve | None = self._state.get("reserve")
        return reserve(self._job.most_tokens) if reserve else no_limit

    async def _write(self, send: Send, data: bytes) -> None:
        try:
            async with asyncio.timeout(self._serving.config.stream_stall_s):
                if not self._started:
                    self._started = True
                    await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS]})
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except TimeoutError as error:
            raise Stalled from error

    async def _end(self, send: Send) -> None:
        await self._write(send, DONE)
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _give_up(self, send: Send, shutting_down: bool) -> None:
        """End what the server can no longer wait for: as an answer, or as the last event of a stream."""
        error = timed_out(self._serving.config.deadline_s)
        if shutting_down:
            error = not_ready("the server is shutting down; try again shortly", {"Connection": "close"})
        if not self._started:
            raise error
        await self._write(send, error_event(error))
        await self._end(send)

    def _shown(self, error: Exception) -> RequestError:
        if isinstance(error, RequestError):
            return error
        log.error("request %s failed", self._job.request_id, exc_info=error)
        return internal(self._job.request_id)

    def _head(self, kind: str) -> Head:
        model = self._serving.config.served_model_name
        name = f"{self._writer.id_prefix}-{self._job.request_id}"
        return {"id": name, "object": kind, "created": int(time.time()), "model": model}


def no_limit(used: int) -> None:
    pass


async def client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def cancel(tasks: tuple[asyncio.Task[None] | asyncio.Task[bool], ...]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def last_word(choice: Choice) -> Delta:
    """The whole of an ended choice that nothing was taken of before."""
    delta = choice.take()
    assert delta is not None, "an ended choice always has its end to tell"
    return delta
