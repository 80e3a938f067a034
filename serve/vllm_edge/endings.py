"""Every answer ends, in time, and a stream ends so that a client can tell a whole one from a broken one."""

import asyncio
from collections.abc import Iterable

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twofour.serve.edge.errors import RequestError, internal, note_rejection, send_error, shutting_down, timed_out
from twofour.serve.edge.ids import request_id
from twofour.serve.edge.lifecycle import PROBES, Lifecycle
from twofour.serve.vllm_edge.failures import translated

STREAMED = ("/v1/completions", "/v1/chat/completions")
DONE = b"data: [DONE]\n\n"
ERROR = b'data: {"error"'
AS_IT_COMES = ((b"cache-control", b"no-cache"), (b"x-accel-buffering", b"no"))  # not to be kept on the way
LEAVE_S = 2.0  # for vLLM to notice that a request is over
DISCONNECT: Message = {"type": "http.disconnect"}


class Endings:
    def __init__(self, app: ASGIApp, lifecycle: Lifecycle, deadline_s: float) -> None:
        self._app, self._lifecycle, self._deadline_s = app, lifecycle, deadline_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] in PROBES:
            return await self._app(scope, receive, send)
        over, answer = asyncio.Event(), Answer(scope, send)
        work = asyncio.ensure_future(self._app(scope, until(over, receive), answer.forward))
        expired = asyncio.ensure_future(self._lifecycle.expired.wait())
        try:
            await asyncio.wait((work, expired), timeout=self._deadline_s, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await answer.end(shutting_down() if expired.done() else timed_out(self._deadline_s))
                over.set()  # vLLM sees a client that has left, and frees what the request has
                await asyncio.wait((work,), timeout=LEAVE_S)
        finally:
            expired.cancel()
            if not work.done():
                work.cancel()
        await answer.check(work)


def until(over: asyncio.Event, receive: Receive) -> Receive:
    """The client's messages, until the request is over; then the news that it has left."""

    async def receive_or_leave() -> Message:
        message, end = asyncio.ensure_future(receive()), asyncio.ensure_future(over.wait())
        try:
            await asyncio.wait((message, end), return_when=asyncio.FIRST_COMPLETED)
            return message.result() if message.done() else DISCONNECT
        finally:
            message.cancel()
            end.cancel()

    return receive_or_leave


class Answer:
    """One answer while it passes."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope, self._send = scope, send
        self._started = self._streamed = self._done = self._ended = False

    async def forward(self, message: Message) -> None:
        if self._ended:
            return
        if message["type"] == "http.response.start":
            self._started, self._streamed = True, self._scope["path"] in STREAMED and is_stream(message)
            if self._streamed:
                message = {**message, "headers": [*message["headers"], *AS_IT_COMES]}
        elif self._streamed:
            message = self._event(message)
        self._ended = message["type"] == "http.response.body" and not message.get("more_body", False)
        await self._send(message)

    def _event(self, message: Message) -> Message:
        body = message.get("body", b"")
        if ERROR in body:
            body = b"".join(map(self._translated, events(body)))
        self._done = self._done or DONE in body
        if not message.get("more_body", False) and not self._done:
            body += event(internal(request_id(self._scope))) + DONE
        return {**message, "body": body}

    def _translated(self, text: bytes) -> bytes:
        if not text.startswith(ERROR):
            return text
        error = translated(500, text.removeprefix(b"data: "), self._scope)
        note_rejection(self._scope, error)
        return event(error)

    async def end(self, error: RequestError) -> None:
        """Say why nothing more comes. From now on: the client may be slow to take it."""
        was_over, self._ended = self._ended, True
        if not self._started:
            await send_error(self._scope, self._send, error)
        elif self._streamed and not was_over:
            note_rejection(self._scope, error)
            await self._send({"type": "http.response.body", "body": event(error) + DONE, "more_body": False})

    async def check(self, work: "asyncio.Future[None]") -> None:
        """Raise what the application has raised, after the end of the stream that it has broken off."""
        if work.cancelled() or not work.done():
            return
        if work.exception() and self._streamed and not self._ended:
            await self.end(internal(request_id(self._scope)))
        work.result()


def is_stream(start: Message) -> bool:
    headers: Iterable[tuple[bytes, bytes]] = start.get("headers", ())
    return any(name.lower() == b"content-type" and value.startswith(b"text/event-stream") for name, value in headers)


def events(body: bytes) -> list[bytes]:
    return [part + b"\n\n" for part in body.split(b"\n\n") if part]


def event(error: RequestError) -> bytes:
    return b"data: " + error.body() + b"\n\n"
