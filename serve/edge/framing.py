"""What can be refused by the headers alone."""

from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from twofour.serve.edge.cors import is_preflight
from twofour.serve.edge.errors import CLOSE, RequestError, invalid, send_error
from twofour.serve.edge.ids import header

MAX_HEADERS = 128

Check = Callable[[Scope], RequestError | None]


def ambiguous(scope: Scope) -> RequestError | None:
    """Two servers that disagree about which length counts would see two different requests. So this is asked before the
    key, as h11's own refusals are: it is about where a request ends, whoever sent it, and it ends the connection."""
    if header(scope, b"content-length") is not None and header(scope, b"transfer-encoding") is not None:
        return RequestError(400, "both Content-Length and Transfer-Encoding; send one", headers=CLOSE)
    return None


def fault(scope: Scope) -> RequestError | None:
    """The first other fault of a request's head. Asked after the key."""
    if len(scope["headers"]) > MAX_HEADERS:
        return RequestError(431, f"more than {MAX_HEADERS} headers; send fewer", headers=CLOSE)
    if is_preflight(scope):
        return invalid("requests from other origins are not allowed; use a server-side client")
    if scope["method"] == "POST" and not is_json(header(scope, b"content-type")):
        return invalid('the body must be JSON; send the header "Content-Type: application/json"')
    return None


def is_json(content_type: bytes | None) -> bool:
    media_type = (content_type or b"").partition(b";")[0].strip().lower()
    return media_type == b"application/json" or (
        media_type.startswith(b"application/") and media_type.endswith(b"+json")
    )


class Refuse:
    """Refuses requests in which a check finds a fault."""

    def __init__(self, app: ASGIApp, check: Check) -> None:
        self._app, self._check = app, check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        error = self._check(scope)
        if error is None:
            await self._app(scope, receive, send)
        else:
            await send_error(scope, send, error)
