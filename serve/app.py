"""The embedded server as one ASGI application. The caller starts and stops the engine."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.routing import APIRoute
from prometheus_client import CollectorRegistry
from starlette.types import ASGIApp

from twofour.serve.config import ServeConfig
from twofour.serve.edge.harden import harden
from twofour.serve.edge.lifecycle import Lifecycle
from twofour.serve.edge.observing.http_metrics import HttpMetrics
from twofour.serve.edge.observing.observe import Watcher
from twofour.serve.engine.types import Engine
from twofour.serve.http import operations, page
from twofour.serve.openai import routes
from twofour.serve.openai.admission import Admission
from twofour.serve.openai.engine_metrics import EngineCollector, EngineMetrics
from twofour.serve.openai.handlers import install_handlers
from twofour.serve.openai.prompts.vocabulary import Vocabulary
from twofour.serve.openai.serving import Serving

ROUTERS = (routes.router, operations.router)  # the page's is added where there is a page
ROUTES = [route for router in ROUTERS for route in router.routes if isinstance(route, APIRoute)]
PATHS = frozenset({page.PATH, *(route.path for route in ROUTES if not route.param_convertors)})


def create_app(
    engine: Engine,
    config: ServeConfig,
    tokenizer: Any,
    registry: CollectorRegistry | None = None,
    lifecycle: Lifecycle | None = None,
    watchers: Sequence[Watcher] = (),
) -> ASGIApp:
    """Routes over the engine, and the edge around them."""
    registry, lifecycle = registry or CollectorRegistry(), lifecycle or Lifecycle()
    registry.register(EngineCollector(engine, lifecycle, config.served_model_name))
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.state.registry = registry
    metrics = EngineMetrics(registry, config.served_model_name)
    app.state.serving = Serving(
        engine=engine,
        config=config,
        vocabulary=Vocabulary(tokenizer),
        metrics=metrics,
        lifecycle=lifecycle,
        admission=Admission(config.max_queue, config.max_queue_tokens, metrics.count_refusal),
    )
    install_handlers(app)
    for router in ROUTERS:
        app.include_router(router)
    if config.ui:
        app.include_router(page.page_router())
    return harden(app, config.edge, lifecycle, HttpMetrics(registry, PATHS).observe, *watchers)
