"""The outermost layer except CORS: every request gets an id, an answer, a line in the log, and is counted."""

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence

from starlette.types import ASGIApp, Receive, Scope, Send

from twofour.serve.edge.errors import internal, send_error, shutting_down
from twofour.serve.edge.ids import header, identify, request_id
from twofour.serve.edge.lifecycle import PROBES
from twofour.serve.edge.observing.exchange import Exchange
from twofour.serve.edge.observing.traceparent import trace_id, traceparent

access_log = logging.getLogger("twofour.access")
log = logging.getLogger("twofour.edge")


Watcher = Callable[[Exchange], None]  # called with every exchange at its end


class Observe:
    def __init__(self, app: ASGIApp, watchers: Sequence[Watcher]) -> None:
        self._app, self._watchers = app, watchers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = Exchange(scope, send)
        identify(scope)
        scope["state"]["traceparent"] = traceparent(header(scope, b"traceparent"))
        scope["state"]["began_at"] = exchange.began_at
        try:
            await self._app(scope, receive, exchange.forward)
        except asyncio.CancelledError:  # the server ends and no longer waits for this request
            if not exchange.started:
                await send_error(scope, exchange.forward, shutting_down())
            raise
        except Exception:
            log.exception("request %s failed", request_id(scope))
            if not exchange.started:
                await send_error(scope, exchange.forward, internal(request_id(scope)))
        finally:
            for watch in self._watchers:
                watch(exchange)
            if not is_routine(exchange):
                access_log.info("%s", log_line(exchange))


def is_routine(exchange: Exchange) -> bool:
    """Probes and scrapes come every few seconds; only their failures are logged."""
    return exchange.scope["path"] in PROBES and exchange.status < 400


def log_line(exchange: Exchange) -> str:
    """One JSON object. The query string and the body stay out: they may hold secrets and prompts."""
    scope = exchange.scope
    fields = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "id": request_id(scope),
        "trace": trace_id(scope["state"]["traceparent"]),
        "client": (scope.get("client") or ("",))[0],
        "method": scope["method"][:16],
        "path": scope["path"][:256],
        "status": exchange.status,
        "seconds": round(exchange.seconds, 6),
        "received_bytes": exchange.received_bytes,
        "sent_bytes": exchange.sent_bytes,
        "rejection": exchange.rejection,
    }
    return json.dumps(fields)
