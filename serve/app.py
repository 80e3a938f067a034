"""The embedded server as one ASGI application. Whoever made the engine starts and stops it."""

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
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

PATHS = frozenset(
    {
        *(page.PATH, "/health", "/ready", "/version", "/metrics", "/debug/steps", "/tokenize", "/detokenize"),
        *("/v1/models", "/v1/completions", "/v1/chat/completions"),
    }
)


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
    app.include_router(routes.router)
    app.include_router(operations.router)
    if config.ui:
        app.include_router(page.page_router())
    return harden(app, config.edge, lifecycle, HttpMetrics(registry, PATHS).observe, *watchers)
