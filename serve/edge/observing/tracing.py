"""Spans for OpenTelemetry, one per request, sent over OTLP/HTTP. Needs the extra `otel`.

Names and attributes are those of its GenAI conventions (in development) and, where these have none, of vLLM.
"""

import time
from importlib.util import find_spec
from typing import Any

from twofour.prune.errors import InputError
from twofour.serve.edge.ids import request_id
from twofour.serve.edge.observing.exchange import Exchange

TRACED = ("/v1/completions", "/v1/chat/completions")


class Tracer:
    """A thread of its own sends the spans; those that a slow collector does not take are dropped."""

    def __init__(self, endpoint: str) -> None:
        if find_spec("opentelemetry.sdk") is None:
            raise InputError('--otlp-endpoint needs OpenTelemetry; install "twofour[otel]"')
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces")
        self._provider = TracerProvider(resource=Resource.create({"service.name": "twofour"}), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("twofour.serve")

    def record(self, exchange: Exchange) -> None:
        """One span for a request that has been answered, a child of the caller's."""
        path = exchange.scope["path"]
        if path not in TRACED:
            return
        ended_ns = time.time_ns()
        span = self._tracer.start_span(
            f"POST {path}",
            context=parent_of(exchange),
            kind=server_kind(),
            attributes=attributes_of(exchange),
            start_time=ended_ns - int(exchange.seconds * 1e9),
        )
        if exchange.status >= 500:
            span.set_status(error_status())
        span.end(ended_ns)

    def close(self) -> None:
        """Send what is left, which may take a few seconds."""
        self._provider.shutdown()


def parent_of(exchange: Exchange) -> Any:
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    given = exchange.scope["state"].get("traceparent")
    return TraceContextTextMapPropagator().extract({"traceparent": given} if given else {})


def server_kind() -> Any:
    from opentelemetry.trace import SpanKind

    return SpanKind.SERVER


def error_status() -> Any:
    from opentelemetry.trace import Status, StatusCode

    return Status(StatusCode.ERROR)


def attributes_of(exchange: Exchange) -> dict[str, Any]:
    """What is known of the exchange, and what openai/answers/spans.py noted of the generation; never its text."""
    attributes: dict[str, Any] = {
        "http.response.status_code": exchange.status,
        "gen_ai.provider.name": "twofour",
        "gen_ai.request.id": request_id(exchange.scope),
        **exchange.scope["state"].get("span", {}),
    }
    return attributes if exchange.rejection is None else {**attributes, "error.type": exchange.rejection}
