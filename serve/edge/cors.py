"""Which web pages may call this server from a browser: none, unless their origins are named."""

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twofour.serve.edge.ids import header

ANY = "*"
RawHeaders = list[tuple[bytes, bytes]]
LEAVE: RawHeaders = [
    (b"access-control-allow-methods", b"GET, POST"),
    (b"access-control-allow-headers", b"authorization, content-type, traceparent, x-request-id"),
    (b"access-control-max-age", b"600"),
]
SHOWN = b"x-request-id, retry-after"


class Cors:
    """Never with credentials: a key is sent by the page, not by the browser."""

    def __init__(self, app: ASGIApp, origins: tuple[str, ...]) -> None:
        self._app, self._origins = app, frozenset(origins)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = header(scope, b"origin")
        if origin is None or not self._may(origin):
            return await self._app(scope, receive, send)
        own: RawHeaders = [
            (b"access-control-allow-origin", b"*" if ANY in self._origins else origin),
            (b"vary", b"origin"),
        ]
        if scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method") is not None:
            await send({"type": "http.response.start", "status": 204, "headers": [*own, *LEAVE]})
            return await send({"type": "http.response.body", "body": b""})

        async def send_with_leave(message: Message) -> None:
            if message["type"] == "http.response.start":
                shown = (b"access-control-expose-headers", SHOWN)
                message["headers"] = [*message.get("headers", ()), *own, shown]
            await send(message)

        await self._app(scope, receive, send_with_leave)

    def _may(self, origin: bytes) -> bool:
        return ANY in self._origins or origin.decode("latin-1") in self._origins
