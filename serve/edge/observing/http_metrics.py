"""HTTP metrics, under the names and labels that vLLM's server uses."""

from prometheus_client import CollectorRegistry, Counter, Histogram

from twofour.serve.edge.observing.exchange import Exchange

METHODS = frozenset({"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"})
COARSE_S = (0.1, 0.5, 1.0)
FINE_S = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 4.5, 5.0),
    *(7.5, 10.0, 30.0, 60.0),
)
SIZES = (1e2, 1e3, 1e4, 1e5, 1e6, 1e7)


# Series that exist from the start, at 0, so that a rate sees the first one; `invalid_api_key`: authentication failed.
REASONS = (
    *("invalid_api_key", "invalid_json", "invalid_request_error", "unsupported_parameter", "context_length_exceeded"),
    *("model_not_found", "request_too_large", "rate_limit_exceeded", "engine_overloaded", "not_ready", "timeout"),
)


class HttpMetrics:
    """The label `handler` has only values from `paths`: clients cannot make new series."""

    def __init__(self, registry: CollectorRegistry, paths: frozenset[str]) -> None:
        self._paths = paths
        labels = ["handler", "method"]
        self._requests = Counter(
            "http_requests", "Requests answered.", ["handler", "method", "status"], registry=registry
        )
        self._seconds = Histogram(
            "http_request_duration_seconds", "Time to answer.", labels, registry=registry, buckets=COARSE_S
        )
        self._seconds_fine = Histogram(
            "http_request_duration_highr_seconds", "Time to answer.", registry=registry, buckets=FINE_S
        )
        self._received = Histogram(
            "http_request_size_bytes", "Declared body size.", ["handler"], registry=registry, buckets=SIZES
        )
        self._sent = Histogram(
            "http_response_size_bytes", "Answered body size.", ["handler"], registry=registry, buckets=SIZES
        )
        self._rejections = Counter(
            "twofour:rejected_requests", "Requests refused, by reason.", ["reason"], registry=registry
        )

        for reason in REASONS:
            self._rejections.labels(reason)

    def observe(self, exchange: Exchange) -> None:
        handler = self._handler(exchange.scope["path"])
        method = exchange.scope["method"] if exchange.scope["method"] in METHODS else "OTHER"
        self._requests.labels(handler, method, f"{exchange.status // 100}xx").inc()
        self._seconds.labels(handler, method).observe(exchange.seconds)
        self._seconds_fine.observe(exchange.seconds)
        self._received.labels(handler).observe(exchange.received_bytes)
        self._sent.labels(handler).observe(exchange.sent_bytes)
        if exchange.rejection is not None:
            self._rejections.labels(exchange.rejection).inc()

    def _handler(self, path: str) -> str:
        if path in self._paths:
            return path
        return next(
            (f"{known}/{{id}}" for known in self._paths if path.startswith(f"{known}/") and known != "/"), "none"
        )
