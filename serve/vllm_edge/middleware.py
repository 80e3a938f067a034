"""The edge as vLLM's server takes it, by --middleware: a class around its application. It is the outermost layer."""

import asyncio
import logging
import os
from collections.abc import Callable

from starlette.types import ASGIApp, Receive, Scope, Send

from twofour.serve.edge.harden import harden
from twofour.serve.edge.ids import request_id
from twofour.serve.edge.observing.http_metrics import HttpMetrics
from twofour.serve.edge.observing.tracing import Tracer
from twofour.serve.vllm_edge import connections, control
from twofour.serve.vllm_edge.endings import Endings
from twofour.serve.vllm_edge.engine_state import ASK_S
from twofour.serve.vllm_edge.failures import Failures
from twofour.serve.vllm_edge.metrics import State
from twofour.serve.vllm_edge.plugin import PATHS
from twofour.serve.vllm_edge.requests import Requests
from twofour.serve.vllm_edge.shared import shared

UNPLUGGED = "vLLM has not loaded the plugin twofour_edge; install twofour anew, with pip, where vLLM is"


class Edge:
    def __init__(self, app: ASGIApp) -> None:
        self._app, known = app, shared()
        told, self._lifecycle = known.settings, known.lifecycle
        self._tracer = Tracer(told.otlp_endpoint) if told.otlp_endpoint else None
        watchers = [HttpMetrics(known.registry, PATHS).observe, *([self._tracer.record] if self._tracer else [])]
        inner = Endings(Requests(Failures(Named(app), self._lifecycle)), self._lifecycle, told.deadline_s)
        self._guarded = harden(inner, told.edge, self._lifecycle, *watchers)
        known.registry.register(State(known))
        write_access_log()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        else:
            await self._guarded(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        if shared().heartbeat is None:
            return await send({"type": "lifespan.startup.failed", "message": UNPLUGGED})
        server = scope["app"].state.server
        connections.use(server.config)
        following = asyncio.create_task(self._follow(lambda: bool(server.started)))
        try:
            await self._app(scope, receive, send)
        finally:
            following.cancel()
            if self._tracer:
                await asyncio.to_thread(self._tracer.close)

    async def _follow(self, started: Callable[[], bool]) -> None:
        """Tell the parent when requests are answered, and do as it says."""
        while not started():
            await asyncio.sleep(0.01)
        reader, writer = await asyncio.open_unix_connection(os.environ[control.VARIABLE])
        writer.write(control.UP)
        living = asyncio.create_task(say_alive(writer))
        try:
            async for word in reader:
                if word == control.DRAIN:
                    told = shared().settings
                    await self._lifecycle.drain(told.drain_s, pre_s=told.pre_drain_s)
                    writer.write(control.DRAINED)
        finally:
            living.cancel()


async def say_alive(writer: asyncio.StreamWriter) -> None:
    while True:
        if (heartbeat := shared().heartbeat) and heartbeat.answers:
            writer.write(control.ALIVE)
        await asyncio.sleep(ASK_S)


class Named:
    """vLLM takes the id of a request from its header, as it stands: it gets the one that the edge has chosen. And it
    knows one name for JSON, where the edge has accepted any."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        own = {b"x-request-id": request_id(scope).encode()}
        if scope["method"] == "POST":
            own[b"content-type"] = b"application/json"
        others = [(name, value) for name, value in scope["headers"] if name not in own]
        await self._app({**scope, "headers": [*others, *own.items()]}, receive, send)


def write_access_log() -> None:
    """As bare JSON lines: to a stream of its own, since vLLM writes its name before each line of stderr."""
    access = logging.getLogger("twofour.access")
    access.setLevel(logging.INFO)
    access.propagate = False
    stream = open(2, "w", buffering=1, closefd=False)  # noqa: SIM115
    access.handlers = [logging.StreamHandler(stream)]
