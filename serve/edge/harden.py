"""The edge: what stands between the network and an OpenAI-style application, as plain ASGI.

It knows no route and no engine, so it can stand before the embedded server and before vLLM's.
"""

from dataclasses import dataclass, field

from starlette.types import ASGIApp, Receive, Scope, Send

from twofour.serve.edge.auth import Auth, Digests
from twofour.serve.edge.bodies import BodyLimit
from twofour.serve.edge.cors import Cors, Preflight
from twofour.serve.edge.framing import Refuse, ambiguous, fault
from twofour.serve.edge.head import Head
from twofour.serve.edge.lifecycle import PROBES, DrainGate, Lifecycle
from twofour.serve.edge.limits import Limits, RateLimit
from twofour.serve.edge.observing.observe import Observe, Watcher


@dataclass(frozen=True)
class EdgeConfig:
    api_keys: Digests = ()  # none: no key is asked for
    open_paths: frozenset[str] = PROBES  # no key is asked for there
    limits: Limits = field(default_factory=Limits)  # of each key
    cors_origins: tuple[str, ...] = ()
    max_body_bytes: int = 8 << 20
    body_deadline_s: float = 30.0


def harden(app: ASGIApp, config: EdgeConfig, lifecycle: Lifecycle, *watchers: Watcher) -> ASGIApp:
    """Wrap from the inside out: a request meets the last line first."""
    guarded: ASGIApp = BodyLimit(Head(app), config.max_body_bytes, config.body_deadline_s)
    guarded = DrainGate(guarded, lifecycle)
    guarded = RateLimit(guarded, config.limits)
    guarded = Refuse(guarded, fault)
    guarded = Auth(guarded, config.api_keys, config.open_paths)
    guarded = Refuse(guarded, ambiguous)
    guarded = Preflight(guarded, config.cors_origins)
    guarded = Observe(guarded, watchers)
    guarded = Cors(guarded, config.cors_origins)
    return http_only(guarded, app)


def http_only(guarded: ASGIApp, bare: ASGIApp) -> ASGIApp:
    """Start-up events go to the application itself; web sockets, which no layer checks, go nowhere."""

    async def route(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            await guarded(scope, receive, send)
        elif scope["type"] == "lifespan":
            await bare(scope, receive, send)
        else:
            await send({"type": "websocket.close", "code": 1008})

    return route
