"""Request bodies: read whole before the application sees them, within a size and a time."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twofour.serve.edge.errors import RequestError, body_too_large, send_error
from twofour.serve.edge.ids import header


class BodyLimit:
    """The application gets a complete body or nothing; then it hears only of the client leaving."""

    def __init__(self, app: ASGIApp, limit_bytes: int, deadline_s: float) -> None:
        self._app, self._limit_bytes, self._deadline_s = app, limit_bytes, deadline_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            return await self._app(scope, receive, send)
        try:
            body = await asyncio.wait_for(self._read(scope, receive), self._deadline_s)
        except TimeoutError:
            return await send_error(scope, send, too_slow(self._deadline_s))
        except RequestError as error:
            return await send_error(scope, send, error)
        if body is not None:
            await self._app(scope, replay(body, receive), send)

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The body; None if the client left before its end."""
        if waits_for_consent(scope) and declared_bytes(scope) > self._limit_bytes:
            raise body_too_large(self._limit_bytes)
        body, size = bytearray(), 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            size += len(message.get("body", b""))
            if size <= self._limit_bytes:
                body += message.get("body", b"")
            if not message.get("more_body", False):
                break
        # An answer in the middle of the upload would reach most clients as a reset connection:
        # the surplus is read and dropped first.
        if size > self._limit_bytes:
            raise body_too_large(self._limit_bytes)
        return bytes(body)


def waits_for_consent(scope: Scope) -> bool:
    return (header(scope, b"expect") or b"").lower() == b"100-continue"


def declared_bytes(scope: Scope) -> int:
    return int(header(scope, b"content-length") or 0)


def too_slow(deadline_s: float) -> RequestError:
    message = f"the request body did not arrive within {deadline_s:g} s; send it faster"
    return RequestError(408, message, headers={"Connection": "close"})


def replay(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive_again() -> Message:
        return pending.pop() if pending else await receive()

    return receive_again
