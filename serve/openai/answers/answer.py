"""One request from its bytes to the end of its answer, whole or as a stream."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Generic, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from twofour.serve.edge.bodies import release_body
from twofour.serve.edge.errors import RequestError, internal
from twofour.serve.edge.limits import Reserve, Settle
from twofour.serve.openai.admission import Place
from twofour.serve.openai.answers.choice import Choice, Delta
from twofour.serve.openai.answers.dumps import dumps
from twofour.serve.openai.answers.generation import Generation, Job
from twofour.serve.openai.answers.owned import body_of, owned
from twofour.serve.openai.answers.replies import Envelope, Reply, Usage, Writer
from twofour.serve.openai.answers.spans import span_of
from twofour.serve.openai.answers.streams import DONE, HEADERS, Stream, error_event, usage_of
from twofour.serve.openai.protocol import GenerationRequest, StreamOptions
from twofour.serve.openai.serving import Caller, Serving

log = logging.getLogger("twofour.openai")

Request = TypeVar("Request", bound=GenerationRequest)
Prepare = Callable[[Serving, Request, Caller], Awaitable[tuple[Job, Writer]]]


class Stalled(Exception):
    """The client keeps the connection open and reads nothing."""


class Answer(Response, Generic[Request]):
    """Generates while it answers. Nothing is sent before the first token is there, so that a failure until then has a
    status of its own. The one exception is a stream that has been silent for `keep_alive_s`, which proxies would soon
    cut: it begins with a comment, and an error comes as its last event."""

    def __init__(self, serving: Serving, caller: Caller, model: type[Request], prepare: Prepare[Request]) -> None:
        super().__init__()
        self._serving, self._caller = serving, caller
        self._model, self._prepare = model, prepare
        self._started = False
        self._state: dict[str, Any] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._state = scope["state"]
        with self._serving.admission.place() as place:
            work = self._work(await body_of(receive), place, scope, receive, send)
            try:
                await owned(self._serving, self._caller, receive, work)
            except RequestError as error:
                if not self._started:
                    raise
                await self._end_with_error(send, error)

    async def _work(self, raw: bytes, place: Place, scope: Scope, receive: Receive, send: Send) -> None:
        job, writer, options = await self._prepared(raw, place)
        del raw
        release_body(scope)  # the answer may take minutes
        if options is None:
            await self._whole(job, writer, scope, receive, send)
        else:
            await self._stream(job, writer, options, send)

    async def _prepared(self, raw: bytes, place: Place) -> tuple[Job, Writer, StreamOptions | None]:
        async with self._serving.turn(len(raw)):
            body = await self._serving.parsed(raw, self._model)
            job, writer = await self._prepare(self._serving, body, self._caller)
            place.fill(job.prompts)
        return job, writer, (body.stream_options or StreamOptions()) if body.stream else None

    async def _whole(self, job: Job, writer: Writer, scope: Scope, receive: Receive, send: Send) -> None:
        async with self._generation(job, writer) as generation:
            while not generation.done:
                await generation.advance()
        deltas = [whole_delta(choice) for choice in generation.choices]
        content = await self._serving.written(deltas, self._reply, writer, deltas, usage_of(generation))
        await Response(content, media_type="application/json")(scope, receive, send)

    def _reply(self, writer: Writer, deltas: Sequence[Delta], usage: Usage) -> bytes:
        choices = [writer.whole(delta) for delta in deltas]
        reply: Reply = {**self._envelope(writer, writer.kind), "choices": choices, "usage": usage}
        return dumps(reply).encode()

    async def _stream(self, job: Job, writer: Writer, options: StreamOptions, send: Send) -> None:
        envelope, keep_alive_s = self._envelope(writer, writer.chunk_kind), self._serving.config.keep_alive_s
        stream = Stream(envelope, writer, options, keep_alive_s, self._serving.written)
        with self._unless_stalled():
            try:
                async with self._generation(job, writer) as generation:
                    async for data in stream.events(generation):
                        await self._write(send, data)
            except Stalled:
                raise
            except Exception as error:
                if not self._started:
                    raise
                await self._write(send, error_event(self._shown(error)))
            await self._end(send)

    async def _end_with_error(self, send: Send, error: RequestError) -> None:
        with self._unless_stalled():
            await self._write(send, error_event(error))
            await self._end(send)

    @contextmanager
    def _unless_stalled(self) -> Iterator[None]:
        """A client that does not read gets no end of its stream: the connection is cut."""
        try:
            yield
        except Stalled:
            self._serving.metrics.stalled_streams.inc()

    @asynccontextmanager
    async def _generation(self, job: Job, writer: Writer) -> AsyncIterator[Generation]:
        serving = self._serving
        settle = self._reserve(job)
        decode, spell = serving.vocabulary.decode, serving.vocabulary.spelling.shown_bytes
        generation = Generation(job, serving.engine, serving.metrics, decode, spell)
        try:
            async with generation:
                yield generation
        finally:  # however it ended
            settle(generation.used_tokens)
            self._state["span"] = span_of(writer.kind, serving.config.served_model_name, generation)

    def _reserve(self, job: Job) -> Settle:
        """Take all tokens that this request may use from those of its key in this minute; settled at its end."""
        reserve: Reserve | None = self._state.get("reserve")
        return reserve(job.most_tokens) if reserve else no_limit

    async def _write(self, send: Send, data: bytes, more: bool = True) -> None:
        try:
            async with asyncio.timeout(self._serving.config.stream_stall_s):
                if not self._started:
                    self._started = True
                    await send({"type": "http.response.start", "status": 200, "headers": [*HEADERS]})
                await send({"type": "http.response.body", "body": data, "more_body": more})
        except TimeoutError as error:
            raise Stalled from error

    async def _end(self, send: Send) -> None:
        await self._write(send, DONE)
        await self._write(send, b"", more=False)

    def _shown(self, error: Exception) -> RequestError:
        if isinstance(error, RequestError):
            return error
        log.error("request %s failed", self._caller.request_id, exc_info=error)
        return internal(self._caller.request_id)

    def _envelope(self, writer: Writer, kind: str) -> Envelope:
        model = self._serving.config.served_model_name
        name = f"{writer.id_prefix}-{self._caller.request_id}"
        return {"id": name, "object": kind, "created": int(time.time()), "model": model}


def no_limit(used: int) -> None:
    pass


def whole_delta(choice: Choice) -> Delta:
    """All of a choice that has ended and from which nothing was taken before."""
    delta = choice.take()
    assert delta is not None, "an ended choice always has its end to tell"
    return delta
