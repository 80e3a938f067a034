"""What /metrics has: vLLM's own, the HTTP metrics of the edge in the place of vLLM's, and the state of the server."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from twofour.serve.vllm_edge.engine_state import metrics_registry
from twofour.serve.vllm_edge.shared import Shared

LABELS = ("model_name", "engine")


def scraped(ours: CollectorRegistry) -> bytes:
    """Both count HTTP requests under the same names: the edge sees also those that it refuses."""
    known = {family.name for family in ours.collect()}
    theirs = CollectorRegistry()
    theirs.register(Without(metrics_registry(), known))
    return generate_latest(theirs) + generate_latest(ours)


class Without(Collector):
    """What another one collects, but for some names."""

    def __init__(self, collector: Collector, names: set[str]) -> None:
        self._collector, self._names = collector, names

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        return (family for family in self._collector.collect() if family.name not in self._names)


class State(Collector):
    """Read at the moment of a scrape."""

    def __init__(self, known: Shared) -> None:
        self._known, self._values = known, (known.settings.served_model_name, "0")

    def describe(self) -> Iterator[Metric]:
        return iter(())

    def collect(self) -> Iterator[Metric]:
        lifecycle, heartbeat = self._known.lifecycle, self._known.heartbeat
        yield self._gauge("twofour:draining", float(lifecycle.ending))
        yield self._gauge("twofour:http_requests_in_flight", lifecycle.in_flight)
        if heartbeat is not None:
            yield self._gauge("twofour:ready", float(heartbeat.ready))
            yield self._gauge("twofour:engine_heartbeat_age_seconds", heartbeat.age_s)

    def _gauge(self, name: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, name.partition(":")[2], labels=LABELS)
        family.add_metric(self._values, value)
        return family
