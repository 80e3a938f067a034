"""Request bodies: read whole before the application sees them, each within a size and a time, all within a size."""

import asyncio
from dataclasses import dataclass
from io import BytesIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twofour.serve.edge.errors import RequestError, body_too_large, overloaded, send_error
from twofour.serve.edge.ids import header

LARGEST_AT_A_TIME = 8  # bodies of the largest size that are held at the same time; of smaller ones more
UNCOUNTED_BYTES = 1 << 14  # of each body: most requests are smaller, and are taken beside any number of large ones


@dataclass
class Budget:
    """Bytes of all bodies that are read or held at the same time."""

    limit_bytes: int
    held_bytes: int = 0

    @property
    def left_bytes(self) -> int:
        return self.limit_bytes - self.held_bytes


class Body:
    """One body while it arrives. Once it is refused, the rest of it is dropped."""

    def __init__(self, limit_bytes: int, budget: Budget) -> None:
        self._limit_bytes, self._budget = limit_bytes, budget
        self._received = BytesIO()  # gives its bytes away uncopied
        self._size = self._counted = 0
        self.error: RequestError | None = None

    def expect(self, declared_bytes: int) -> None:
        """Refuse what cannot be held. Nothing is reserved: a client could declare much and send nothing."""
        if declared_bytes > self._limit_bytes:
            self._refuse(body_too_large(self._limit_bytes))
        elif declared_bytes - UNCOUNTED_BYTES > self._budget.left_bytes:
            self._refuse(too_many())

    def add(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._limit_bytes:
            self._refuse(body_too_large(self._limit_bytes))
        elif self.error is None:
            self._keep(data)

    def take(self) -> bytes:
        """Give all of it away. Its bytes count until `release`, whoever holds them."""
        taken, self._received = self._received.getvalue(), BytesIO()
        return taken

    def release(self) -> None:
        self._budget.held_bytes -= self._counted
        self._counted = 0

    def _keep(self, data: bytes) -> None:
        more = max(0, self._size - UNCOUNTED_BYTES) - self._counted
        if more > self._budget.left_bytes:
            return self._refuse(too_many())
        self._budget.held_bytes += more
        self._counted += more
        self._received.write(data)

    def _refuse(self, error: RequestError) -> None:
        self.error, self._received = error, BytesIO()
        self.release()


class BodyLimit:
    """The application gets a complete body or nothing; after that only the news that the client has left."""

    def __init__(self, app: ASGIApp, limit_bytes: int, deadline_s: float) -> None:
        self._app, self._limit_bytes, self._deadline_s = app, limit_bytes, deadline_s
        self.budget = Budget(LARGEST_AT_A_TIME * limit_bytes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            return await self._app(scope, receive, send)
        body = Body(self._limit_bytes, self.budget)
        try:
            await self._pass_on(body, scope, receive, send)
        finally:
            body.release()

    async def _pass_on(self, body: Body, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            complete = await asyncio.wait_for(read(body, scope, receive), self._deadline_s)
        except TimeoutError:
            return await send_error(scope, send, too_slow(self._deadline_s))
        except RequestError as error:
            return await send_error(scope, send, error)
        if complete:
            scope["state"]["body"] = body
            await self._app(scope, replay(body, receive), send)


def release_body(scope: Scope) -> None:
    """For an application that no longer needs the body, and keeps no part of it, long before its answer ends."""
    if body := scope["state"].get("body"):
        body.release()


async def read(body: Body, scope: Scope, receive: Receive) -> bool:
    """Read to the end. False: the client left before it."""
    body.expect(declared_bytes(scope))
    if body.error and waits_for_consent(scope):
        raise body.error
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return False
        body.add(message.get("body", b""))
        if not message.get("more_body", False):
            break
    # An answer in the middle of the upload would reach most clients as a reset connection:
    # the surplus is read and dropped first.
    if body.error:
        raise body.error
    return True


def waits_for_consent(scope: Scope) -> bool:
    return (header(scope, b"expect") or b"").lower() == b"100-continue"


def declared_bytes(scope: Scope) -> int:
    return int(header(scope, b"content-length") or 0)


def too_many() -> RequestError:
    return overloaded("too many large requests are under way; try again shortly")


def too_slow(deadline_s: float) -> RequestError:
    message = f"the request body did not arrive within {deadline_s:g} s; send it faster"
    return RequestError(408, message, headers={"Connection": "close"})


def replay(body: Body, receive: Receive) -> Receive:
    pending = [body]

    async def receive_again() -> Message:
        if pending:
            return {"type": "http.request", "body": pending.pop().take(), "more_body": False}
        return await receive()

    return receive_again
