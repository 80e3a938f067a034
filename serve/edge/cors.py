"""Which web pages may call this server from a browser: none, unless their origins are named."""

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twofour.serve.edge.ids import header

ANY = "*"
Origins = tuple[str, ...]
RawHeaders = list[tuple[bytes, bytes]]
LEAVE: RawHeaders = [(b"access-control-allow-methods", b"GET, POST"), (b"access-control-max-age", b"600")]
# What clients act on: OpenAI's wait and try again, or not, by the second and third.
SHOWN = b"x-request-id, retry-after, x-should-retry, traceparent"
# Names of headers and nothing else: what is asked for is said again.
NAMES = re.compile(rb"[a-z0-9_-]+( *, *[a-z0-9_-]+)*", re.IGNORECASE)


class Cors:
    """Every answer says who may read it. Never with credentials: a key is sent by the page, not by the browser."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self._app, self._origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = friend(scope, self._origins)
        if origin is None:
            return await self._app(scope, receive, send)
        own = [
            (b"access-control-allow-origin", b"*" if ANY in self._origins else origin),
            (b"access-control-expose-headers", SHOWN),
            (b"vary", b"origin"),
        ]

        async def send_with_leave(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        await self._app(scope, receive, send_with_leave)


class Preflight:
    """Answers what a browser asks before it calls for a page."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self._app, self._origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_preflight(scope) or friend(scope, self._origins) is None:
            return await self._app(scope, receive, send)
        headers = [*LEAVE, *allowed_headers(header(scope, b"access-control-request-headers"))]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def friend(scope: Scope, origins: Origins) -> bytes | None:
    """The origin of the page that calls, where it may."""
    origin = header(scope, b"origin")
    if origin is None or not (ANY in origins or origin.decode("latin-1") in origins):
        return None
    return origin


def is_preflight(scope: Scope) -> bool:
    return scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method") is not None


def allowed_headers(asked: bytes | None) -> RawHeaders:
    """Whatever they are: who may send a key may send anything. OpenAI's JavaScript client has a dozen of them, which
    change with its versions; "*" would leave out the key's."""
    if asked is None or not NAMES.fullmatch(asked):
        return []
    return [(b"access-control-allow-headers", asked)]
