"""The paths that our endpoint has and vLLM's server has not, or has otherwise: an endpoint plugin of vLLM."""

import argparse
from typing import Any

from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST

import twofour
from twofour.serve.edge.errors import SERVER, RequestError, not_ready
from twofour.serve.http import page
from twofour.serve.openai.handlers import respond
from twofour.serve.openai.serving import model_not_found
from twofour.serve.vllm_edge.engine_state import Heartbeat
from twofour.serve.vllm_edge.metrics import scraped
from twofour.serve.vllm_edge.shared import shared

router = APIRouter()
SERVED = ("completions", "chat/completions", "responses", "messages", "embeddings")
PATHS = frozenset(  # values of a label
    (page.PATH, "/health", "/ready", "/metrics", "/version", "/v1/models", "/tokenize", "/detokenize")
).union(f"/v1/{name}" for name in SERVED)


class EndpointPlugin:
    name = "twofour_edge"
    required_tasks = None  # always

    def attach_router(self, app: FastAPI) -> None:
        app.include_router(router)
        if shared().settings.ui:
            app.include_router(page.page_router())

    async def init_state(self, engine_client: Any, state: Any, args: argparse.Namespace) -> None:
        shared().heartbeat = Heartbeat(engine_client)


@router.get("/health")
async def health(request: Request) -> Response:
    """Alive, also while draining. Restart the server only if this fails for long."""
    if heartbeat().dead and not shared().lifecycle.draining:
        message = "the engine has died, and the server ends"
        headers = {"Retry-After": "1"}
        return respond(request, RequestError(503, message, type=SERVER, code="engine_dead", headers=headers))
    return json_response('{"status":"ok"}')


@router.get("/ready")
async def ready(request: Request) -> Response:
    """Send requests only while this succeeds."""
    if shared().lifecycle.ending:
        return respond(request, not_ready("the server is shutting down"))
    if not heartbeat().ready:
        return respond(request, not_ready("the engine sleeps, or does not answer"))
    return json_response('{"status":"ready"}')


@router.get("/version")
async def version() -> dict[str, str]:
    import vllm

    return {"version": twofour.__version__, "vllm": vllm.__version__}


@router.get("/v1/models/{model:path}")
async def retrieve_model(request: Request, model: str) -> Response:
    known = await request.app.state.openai_serving_models.show_available_models()
    card = next((card for card in known.data if card.id == model), None)
    return respond(request, model_not_found()) if card is None else json_response(card.model_dump_json())


@router.get("/metrics")
async def metrics() -> Response:
    return Response(scraped(shared().registry), media_type=CONTENT_TYPE_LATEST)


def json_response(text: str) -> Response:
    return Response(text, media_type="application/json")


def heartbeat() -> Heartbeat:
    found = shared().heartbeat
    assert found is not None
    return found
