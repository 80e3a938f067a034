"""What a running server says about itself, and single questions to it; nothing here is timed."""

import http.client
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from twofour.bench.load import wire
from twofour.prune.errors import InputError, ServerError

_ANSWER_S = 600.0  # for one question; a CPU may take long over a scored text
_GLANCE_S = 10.0


@dataclass(frozen=True)
class Memory:
    """As the server's /metrics say; None: it does not say.

    `device_peak_bytes`: the most that the engine has held, on its GPU or else of this machine's memory.
    """

    weight_bytes: int | None = None
    linear_bytes: int | None = None
    kv_capacity_tokens: int | None = None
    device_peak_bytes: int | None = None


@dataclass(frozen=True)
class State:
    """One scrape of /metrics."""

    memory: Memory
    kernels: Mapping[str, int]  # kernel -> linears that use it; empty: the server does not say
    prefix_hit_tokens: int | None
    prefix_queried_tokens: int | None


def prefix_hit_share(before: State | None, after: State | None) -> float | None:
    """Share of the prompt tokens between two scrapes that were found in a prefix cache, by the server's counters."""
    hits = [state.prefix_hit_tokens for state in (before, after) if state]
    queried = [state.prefix_queried_tokens for state in (before, after) if state]
    if len(hits) < 2 or None in hits or None in queried:
        return None
    asked = (queried[1] or 0) - (queried[0] or 0)
    return ((hits[1] or 0) - (hits[0] or 0)) / asked if asked else None


@dataclass(frozen=True)
class Endpoint:
    """A server and the model to ask it for."""

    url: str
    model: str
    api_key: str | None = field(default=None, repr=False)

    def ready(self) -> bool:
        """Whether it says so: at /ready or, if it has none, at /health, which may be before its engine answers."""
        try:
            status, _ = self._get("/ready")
            if status == 404:
                status, _ = self._get("/health")
        except ServerError:
            return False
        return status == 200

    def scrape(self) -> State | None:
        """None where the server has no /metrics in Prometheus' format."""
        status, body = self._get("/metrics")
        try:
            return state(body.decode()) if status == 200 else None
        except (ValueError, OverflowError):
            return None

    def step_log(self) -> Mapping[str, Any] | None:
        """The latest steps of the engine, oldest first, a list for each quantity; None where it keeps no such log."""
        status, body = self._get("/debug/steps")
        try:
            found = json.loads(body) if status == 200 else None
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) and isinstance(found.get("total"), int) else None

    def ask(self, path: str, question: Mapping[str, Any]) -> dict[str, Any]:
        """POST to an API path such as /v1/completions."""
        payload = json.dumps({"model": self.model, **question}).encode()
        status, body = _exchange(self.url, self.api_key, path, payload, _ANSWER_S)
        if status != 200:
            raise ServerError(
                f"{wire.shown(self.url)}{path} answers with status {status}: {body[:200].decode(errors='replace')}"
            )
        try:
            answer = json.loads(body)
        except (ValueError, RecursionError):
            raise ServerError(
                f"{wire.shown(self.url)}{path} does not answer with JSON; is it an OpenAI-compatible API?"
            ) from None
        if not isinstance(answer, dict):
            raise ServerError(
                f"{wire.shown(self.url)}{path} answers with a {type(answer).__name__}; expected an object"
            )
        return answer

    def _get(self, path: str) -> tuple[int, bytes]:
        return _exchange(self.url, self.api_key, path)


def served_model(url: str, api_key: str | None = None) -> str:
    """The one model of the server at `url`."""
    status, body = _exchange(url, api_key, "/v1/models")
    names = _names(status, body, wire.shown(url))
    if len(names) != 1:
        raise InputError(f"{wire.shown(url)} serves {', '.join(names) or 'no model'}; choose with --model")
    return names[0]


def _names(status: int, body: bytes, url: str) -> list[str]:
    if status != 200:
        raise ServerError(f"{url} answers /v1/models with status {status}; check the address and the key")
    try:
        return [str(model["id"]) for model in json.loads(body)["data"]]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise ServerError(f"{url} lists no models as OpenAI's API does; give --model") from None


def _exchange(
    url: str, api_key: str | None, path: str, question: bytes | None = None, timeout_s: float = _GLANCE_S
) -> tuple[int, bytes]:
    """Status and body: of a POST of a question, or of a GET. `path` begins with /v1 or is one beside it."""
    to = wire.target(url)
    headers = {"Content-Type": "application/json", **wire.authorization(api_key)}
    connection = http.client.HTTPConnection(to.host, to.port, timeout=timeout_s)
    try:
        connection.request("GET" if question is None else "POST", to.outside(path), question, headers)
        response = connection.getresponse()
        return response.status, wire.hidden(response.read(), api_key)
    except OSError as error:
        raise ServerError(f"no answer from {wire.shown(url)}{path} ({error!r}); is the server up?") from error
    except (http.client.HTTPException, UnicodeError) as error:  # whose words may repeat the request
        why = type(error).__name__
        raise ServerError(f"no answer from {wire.shown(url)}{path} ({why}); is it the address of a server?") from None
    finally:
        connection.close()


def state(metrics: str) -> State:
    """Read the Prometheus text of /metrics; vLLM's names where twofour has none of its own."""
    from prometheus_client.parser import text_string_to_metric_families

    samples = [sample for family in text_string_to_metric_families(metrics) for sample in family.samples]
    values: Counter[tuple[str, ...]] = Counter()
    for sample in samples:  # several engines behind one server have samples of their own
        if _counts(sample.name):
            values[sample.name, *_tag(sample.labels)] += int(sample.value)
    return State(
        Memory(
            values.get(("twofour:weight_bytes", "total")),
            values.get(("twofour:weight_bytes", "linears")),
            values.get(("twofour:kv_capacity_tokens",)),
            values.get(("twofour:peak_device_bytes",)),
        ),
        {key[1]: value for key, value in values.items() if key[0] == "twofour:kernel_linears"},
        values.get(("vllm:prefix_cache_hits_total",)),
        values.get(("vllm:prefix_cache_queries_total",)),
    )


def _counts(name: str) -> bool:
    return name.startswith("twofour:") or name.startswith("vllm:prefix_cache_")


def _tag(labels: Mapping[str, str]) -> Iterator[str]:
    """The label that tells the samples of one family apart, if there is one."""
    return (labels[key] for key in ("kind", "kernel") if key in labels)
