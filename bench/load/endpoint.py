"""What a running server says about itself, and single questions to it; nothing here is timed."""

import http.client
import json
import ssl
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from twofour.bench.load import answers, wire
from twofour.bench.load.access import OPEN, Access, tls_error
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
    access: Access = OPEN

    def ready(self) -> bool:
        """Whether it says so: at /ready or, if it has none, at /health, which may be before its engine answers."""
        try:
            status = self._get("/ready").status
            if status == 404:
                status = self._get("/health").status
        except ServerError:
            return False
        return status == 200

    def scrape(self) -> State | None:
        """None where the server has no /metrics in Prometheus' format."""
        said = self.metrics()
        try:
            return None if said is None else state(said)
        except (ValueError, OverflowError):
            return None

    def step_log(self) -> Mapping[str, Any] | None:
        """The latest steps of the engine, oldest first, a list for each quantity; None where it keeps no such log."""
        said = self._get("/debug/steps")
        try:
            found = json.loads(said.body) if said.status == 200 else None
        except (ValueError, RecursionError):
            return None
        return found if isinstance(found, dict) and isinstance(found.get("total"), int) else None

    def metrics(self) -> str | None:
        """The text of /metrics; None where there is none."""
        said = self._get("/metrics")
        return said.body.decode(errors="replace") if said.status == 200 else None

    def ask(self, path: str, question: Mapping[str, Any]) -> dict[str, Any]:
        """POST to an API path such as /v1/completions."""
        payload = json.dumps({"model": self.model, **question}).encode()
        said, where = _exchange(self.url, self.access, path, payload, _ANSWER_S), f"{wire.shown(self.url)}{path}"
        if said.status != 200:
            raise ServerError(f"{where} answers with {said.refusal()}")
        try:
            answer = json.loads(said.body)
        except (ValueError, RecursionError):
            raise ServerError(f"{where} answers with {answers.page(said.headers, 'JSON', said.body)}") from None
        if not isinstance(answer, dict):
            raise ServerError(f"{where} answers with a {type(answer).__name__}; expected an object")
        return answer

    def version(self) -> str | None:
        """None where it does not say."""
        said = self._get("/version")
        try:
            found = json.loads(said.body) if said.status == 200 else None
        except (ValueError, RecursionError):
            return None
        return str(found["version"]) if isinstance(found, dict) and "version" in found else None

    def models(self) -> Sequence[Mapping[str, Any]]:
        """What it says of its models; nothing where it lists none as OpenAI's API does."""
        said = self._get("/v1/models")
        try:
            listed = json.loads(said.body)["data"] if said.status == 200 else []
            return [model for model in listed if isinstance(model, dict)]
        except (ValueError, RecursionError, KeyError, TypeError):
            return []

    def _get(self, path: str) -> "_Said":
        return _exchange(self.url, self.access, path)


def served_model(url: str, access: Access = OPEN) -> str:
    """The one model of the server at `url`."""
    names = _names(_exchange(url, access, "/v1/models"), wire.shown(url))
    if len(names) != 1:
        raise InputError(f"{wire.shown(url)} serves {', '.join(names) or 'no model'}; choose with --model")
    return names[0]


@dataclass(frozen=True)
class _Said:
    """A response, its body without secrets."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    secrets: tuple[str, ...] = field(repr=False)

    def refusal(self) -> str:
        return answers.refusal(self.status, self.headers, self.body, self.secrets)


def _names(said: _Said, url: str) -> list[str]:
    if said.status != 200:
        raise ServerError(f"{url} answers /v1/models with {said.refusal()}; check the address and the key")
    try:
        listed = json.loads(said.body)
    except (ValueError, RecursionError):
        raise ServerError(f"{url} answers /v1/models with {answers.page(said.headers, 'JSON', said.body)}") from None
    try:
        return [str(model["id"]) for model in listed["data"]]
    except (KeyError, TypeError):
        raise ServerError(f"{url} lists no models as OpenAI's API does; give --model") from None


def _exchange(
    url: str, access: Access, path: str, question: bytes | None = None, timeout_s: float = _GLANCE_S
) -> _Said:
    """Of a POST of a question, or of a GET. `path` begins with /v1 or is one beside it."""
    to, secrets = wire.target(url), access.secrets
    headers = {"Content-Type": "application/json", **access.fields()}
    connection = _connection(to, access, timeout_s)
    try:
        connection.request("GET" if question is None else "POST", to.outside(path), question, headers)
        response = connection.getresponse()
        fields = {name.lower(): value for name, value in response.getheaders()}
        return _Said(response.status, fields, wire.hidden(response.read(), secrets), secrets)
    except ssl.SSLError as error:
        raise ServerError(f"no answer from {wire.shown(url)}{path}: {tls_error(error)}") from None
    except OSError as error:
        raise ServerError(f"no answer from {wire.shown(url)}{path} ({error!r}); is the server up?") from error
    except (http.client.HTTPException, UnicodeError) as error:  # whose words may repeat the request
        why = type(error).__name__
        raise ServerError(f"no answer from {wire.shown(url)}{path} ({why}); is it the address of a server?") from None
    finally:
        connection.close()


def _connection(to: wire.Target, access: Access, timeout_s: float) -> http.client.HTTPConnection:
    if to.tls:
        return http.client.HTTPSConnection(to.host, to.port, timeout=timeout_s, context=access.context())
    return http.client.HTTPConnection(to.host, to.port, timeout=timeout_s)


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
