"""Which web pages may call this server from a browser: none, unless their origins are named."""

import re

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from twofour.serve.edge.ids import header

ANY = "*"
Origins = tuple[str, ...]
RawHeaders = list[tuple[bytes, bytes]]
PREFLIGHT: RawHeaders = [(b"access-control-allow-methods", b"GET, POST"), (b"access-control-max-age", b"600")]
# The headers that clients act on: by the second and third OpenAI's decide when to try again, and whether.
EXPOSED = b"x-request-id, retry-after, x-should-retry, traceparent"
# Names of headers and nothing else: the answer repeats what was asked for.
HEADER_NAMES = re.compile(rb"[a-z0-9_-]+( *, *[a-z0-9_-]+)*", re.IGNORECASE)


class Cors:
    """Every answer says which pages may read it. Never with credentials: the page sends the key, not the browser."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self._app, self._origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        origin = allowed_origin(scope, self._origins)
        if origin is None:
            return await self._app(scope, receive, send)
        own = [
            (b"access-control-allow-origin", b"*" if ANY in self._origins else origin),
            (b"access-control-expose-headers", EXPOSED),
            (b"vary", b"origin"),
        ]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        await self._app(scope, receive, send_with_headers)


class Preflight:
    """Answers the question that a browser asks before it sends the request of a page."""

    def __init__(self, app: ASGIApp, origins: Origins) -> None:
        self._app, self._origins = app, origins

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if not is_preflight(scope) or allowed_origin(scope, self._origins) is None:
            return await self._app(scope, receive, send)
        headers = [*PREFLIGHT, *allowed_headers(header(scope, b"access-control-request-headers"))]
        await send({"type": "http.response.start", "status": 204, "headers": headers})
        await send({"type": "http.response.body", "body": b""})


def allowed_origin(scope: Scope, origins: Origins) -> bytes | None:
    """The origin of the page that calls, if it may call; else None."""
    origin = header(scope, b"origin")
    if origin is None or not (ANY in origins or origin.decode("latin-1") in origins):
        return None
    return origin


def is_preflight(scope: Scope) -> bool:
    return scope["method"] == "OPTIONS" and header(scope, b"access-control-request-method") is not None


def allowed_headers(asked: bytes | None) -> RawHeaders:
    """All that were asked for: a page that may send a key may send anything. OpenAI's JavaScript client sends a dozen,
    which change with its versions; "*" would not cover the one with the key."""
    if asked is None or not HEADER_NAMES.fullmatch(asked):
        return []
    return [(b"access-control-allow-headers", asked)]
