"""The load from the server's side, where it can be seen: what its /metrics said each second, memory and energy.

Latencies by the server are means over all requests of the run, ramp and drain too, from its counters before and after.
Energy is that of the whole machine, which may do other things; it is known only where the server is on this machine.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import isfinite
from typing import Any

# What the samples of vLLM (and ours), SGLang and llama.cpp are called.
NAMES = {
    "running": ("vllm:num_requests_running", "sglang:num_running_reqs", "llamacpp:requests_processing"),
    "waiting": ("vllm:num_requests_waiting", "sglang:num_queue_reqs", "llamacpp:requests_deferred"),
    "kv_cache_usage": ("vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc", "sglang:token_usage"),
    "prompt_tokens": ("vllm:prompt_tokens_total", "sglang:prompt_tokens_total", "llamacpp:prompt_tokens_total"),
    "output_tokens": (
        "vllm:generation_tokens_total",
        "sglang:generation_tokens_total",
        "llamacpp:tokens_predicted_total",
    ),
    "preemptions": ("vllm:num_preemptions_total",),
    "ttft_s": ("vllm:time_to_first_token_seconds_sum", "sglang:time_to_first_token_seconds_sum"),
    "ttft_n": ("vllm:time_to_first_token_seconds_count", "sglang:time_to_first_token_seconds_count"),
    "queue_s": ("vllm:request_queue_time_seconds_sum",),
    "queue_n": ("vllm:request_queue_time_seconds_count",),
    "itl_s": ("vllm:inter_token_latency_seconds_sum", "sglang:inter_token_latency_seconds_sum"),
    "itl_n": ("vllm:inter_token_latency_seconds_count", "sglang:inter_token_latency_seconds_count"),
}
_SHARE = "kv_cache_usage"  # of several engines the mean, of all else the sum


@dataclass(frozen=True)
class Sample:
    """One look. None: the server, or this machine, does not say. Counters count from an unknown beginning."""

    at: float
    running: float | None = None
    waiting: float | None = None
    kv_cache_usage: float | None = None  # share
    prompt_tokens: float | None = None
    output_tokens: float | None = None
    preemptions: float | None = None
    ttft_s: float | None = None  # sums of seconds, and of how many; as the next two pairs
    ttft_n: float | None = None
    queue_s: float | None = None
    queue_n: float | None = None
    itl_s: float | None = None
    itl_n: float | None = None
    gpu_j: float | None = None
    cpu_j: float | None = None
    gpu_used_bytes: int | None = None


@dataclass(frozen=True)
class Held:
    """Memory at the end of the run. An engine takes its GPU's memory in advance, so no one of these says it all."""

    weight_bytes: int | None = None
    kv_capacity_tokens: int | None = None
    device_peak_bytes: int | None = None  # by the server's allocator
    gpu_used_bytes: int | None = None  # by the driver, of all GPUs here
    resident_bytes: int | None = None  # of the server's processes


@dataclass(frozen=True)
class Totals:
    """What the server did during the run, by its own counters. `*_s`: means."""

    prompt_tokens: float | None
    output_tokens: float | None
    preemptions: float | None
    ttft_s: float | None
    queue_s: float | None
    itl_s: float | None
    gpu_j: float | None
    cpu_j: float | None


@dataclass(frozen=True)
class ServerSide:
    samples: Sequence[Sample]
    held: Held

    @property
    def totals(self) -> Totals | None:
        """Null where nothing was sampled twice."""
        if len(self.samples) < 2:
            return None
        first, last = self.samples[0], self.samples[-1]
        sums = {name: _grown(first, last, name) for name in _SUMS}
        means = {f"{name}_s": _mean(first, last, name) for name in ("ttft", "queue", "itl")}
        return Totals(**sums, **means)

    def series(self, name: str) -> list[tuple[float, float]]:
        """When it was looked at, and what was seen."""
        seen = [(sample.at, getattr(sample, name)) for sample in self.samples]
        return [(at, value) for at, value in seen if value is not None]

    def rate(self, name: str) -> list[tuple[float, float]]:
        """How fast a counter grew, from each look to the next; a server that was started again begins anew."""
        steps = pairwise(self.series(name))
        return [(at, (after - before) / (end - at)) for (at, before), (end, after) in steps if after >= before]

    def as_dict(self, started_at: float, with_samples: bool) -> dict[str, Any]:
        """Plain data for documents, times in seconds after the start of the run."""
        samples = [asdict(each) | {"at": each.at - started_at} for each in self.samples] if with_samples else []
        totals = self.totals
        return {"held": asdict(self.held), "totals": totals and asdict(totals), "samples": samples}


_SUMS = ("prompt_tokens", "output_tokens", "preemptions", "gpu_j", "cpu_j")


def named(metrics: str) -> dict[str, float]:
    """The samples that we know, by our names, of the Prometheus text of /metrics."""
    found: dict[str, list[float]] = {}
    for name, _, value in samples(metrics, _OURS.__contains__):
        if isfinite(value):
            found.setdefault(name, []).append(value)
    return dict(_first_of(found))


def samples(metrics: str, wanted: Callable[[str], bool]) -> Iterator[tuple[str, Mapping[str, str], float]]:
    """Name, labels and value of those whose names are wanted. Raises ValueError for what is no Prometheus text."""
    from prometheus_client.parser import text_string_to_metric_families

    # Most of /metrics is buckets; to parse them all takes a hundred times as long.
    lines = [line for line in metrics.splitlines() if wanted(line.partition("{")[0].partition(" ")[0])]
    for family in text_string_to_metric_families("\n".join([*lines, ""])):
        yield from ((each.name, each.labels, each.value) for each in family.samples)


_OURS = frozenset(name for names in NAMES.values() for name in names)


def _first_of(found: Mapping[str, Sequence[float]]) -> Iterator[tuple[str, float]]:
    for ours, names in NAMES.items():
        values = next((found[name] for name in names if name in found), None)
        if values:
            yield ours, sum(values) / (len(values) if ours == _SHARE else 1)


def _grown(first: Sample, last: Sample, name: str) -> float | None:
    before, after = getattr(first, name), getattr(last, name)
    return after - before if before is not None and after is not None and after >= before else None


def _mean(first: Sample, last: Sample, name: str) -> float | None:
    total, count = _grown(first, last, f"{name}_s"), _grown(first, last, f"{name}_n")
    return total / count if total is not None and count else None
