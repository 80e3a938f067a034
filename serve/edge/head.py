"""HEAD wherever GET is answered: the same answer without its body. Load balancers probe with it."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send


class Head:
    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_as_asked(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [(name, with_head(name, value)) for name, value in message.get("headers", ())]
            elif scope["method"] == "HEAD":
                message["body"] = b""
            await send(message)

        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        await self._app({**scope, "method": method}, receive, send_as_asked)


def with_head(name: bytes, value: bytes) -> bytes:
    """Where the answer lists the methods that a path has: HEAD is one of them."""
    return b"GET, HEAD" if (name, value) == (b"allow", b"GET") else value
