"""What operators ask: is it alive, does it take requests, which version is it, what is it doing."""

import json
from dataclasses import fields

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

import twofour
from twofour.serve.edge.errors import SERVER, RequestError, not_ready
from twofour.serve.engine.types import StepRecord

router = APIRouter()


@router.get("/health")
async def health(request: Request) -> dict[str, str]:
    """Alive, also while loading and draining. Restart the server only if this fails for long."""
    if not request.app.state.serving.engine.healthy:
        message = "the engine has died; it is started again shortly, or the server ends"
        raise RequestError(503, message, type=SERVER, code="engine_dead", headers={"Retry-After": "1"})
    return {"status": "ok"}


@router.get("/ready")
async def ready(request: Request) -> dict[str, str]:
    """Send requests only while this succeeds."""
    serving = request.app.state.serving
    if serving.lifecycle.ending:
        raise not_ready("the server is shutting down")
    if not (serving.engine.healthy and serving.engine.ready):
        raise not_ready("the model is loading, or its engine does not answer")
    return {"status": "ready"}


@router.get("/version")
async def version() -> dict[str, str]:
    return {"version": twofour.__version__}


@router.get("/debug/steps")
async def steps(request: Request) -> Response:
    """The step log, oldest step first, one list for each quantity. `total` also counts the steps no longer in it."""
    engine = request.app.state.serving.engine
    quantities = {field.name: [getattr(step, field.name) for step in engine.steps] for field in fields(StepRecord)}
    document = {"total": sum(engine.step_sizes.values()), **quantities}
    return Response(json.dumps(document, separators=(",", ":")), media_type="application/json")


@router.get("/metrics")
async def metrics(request: Request) -> Response:
    return Response(generate_latest(request.app.state.registry), media_type=CONTENT_TYPE_LATEST)
