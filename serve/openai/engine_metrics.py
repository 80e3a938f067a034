"""Engine metrics under vLLM's names, labels and buckets, so that its dashboards and routers read them.

Latencies are observed when pieces arrive; at each scrape the engine's state is read from its latest `Stats`.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from math import inf

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from twofour.serve.edge.lifecycle import Lifecycle
from twofour.serve.engine.types import Engine, EngineInfo, Piece, Prompt

LABELS = ("model_name", "engine")
FIRST_TOKEN_S = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
# The first three are finer than vLLM's: a small model on a CPU answers within 10 ms.
NEXT_TOKEN_S = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75),
    *(1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
LATENCY_S = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
TOKENS = tuple(float(digit * 10**power) for power in range(6) for digit in (1, 2, 5))
SEQUENCES = (1.0, 2.0, 5.0, 10.0, 20.0)
STEP_TOKENS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)

HISTOGRAMS = {
    "time_to_first_token_seconds": FIRST_TOKEN_S,
    "inter_token_latency_seconds": NEXT_TOKEN_S,
    "request_time_per_output_token_seconds": NEXT_TOKEN_S,
    "e2e_request_latency_seconds": LATENCY_S,
    "request_queue_time_seconds": LATENCY_S,
    "request_prefill_time_seconds": LATENCY_S,
    "request_decode_time_seconds": LATENCY_S,
    "request_inference_time_seconds": LATENCY_S,
    "request_prompt_tokens": TOKENS,
    "request_generation_tokens": TOKENS,
    "request_max_num_generation_tokens": TOKENS,
    "request_params_max_tokens": TOKENS,
    "request_params_n": SEQUENCES,
}
COUNTERS = ("prompt_tokens", "generation_tokens", "prompt_tokens_cached")


class EngineMetrics:
    """The series of one served model. Labels are looked up once, since thousands of tokens are counted."""

    def __init__(self, registry: CollectorRegistry, model_name: str) -> None:
        self._values = (model_name, "0")
        self.histograms = {
            name: Histogram(f"vllm:{name}", name, LABELS, registry=registry, buckets=buckets).labels(*self._values)
            for name, buckets in HISTOGRAMS.items()
        }
        self.counters = {
            name: Counter(f"vllm:{name}", name, LABELS, registry=registry).labels(*self._values) for name in COUNTERS
        }
        self._ended = Counter(
            "vllm:request_success", "Ended requests.", (*LABELS, "finished_reason"), registry=registry
        )
        self._refused = Counter(
            "vllm:admission_rejections", "Refused by the queue.", (*LABELS, "reason"), registry=registry
        )
        self.stalled_streams = Counter(
            "twofour:stalled_streams", "Streams cut because the client did not read.", registry=registry
        )
        for reason in ("stop", "length", "abort", "error"):
            self._ended.labels(*self._values, reason)

    def observe(self, name: str, value: float) -> None:
        self.histograms[name].observe(value)

    def count_end(self, reason: str) -> None:
        self._ended.labels(*self._values, reason).inc()

    def count_refusal(self, reason: str) -> None:
        self._refused.labels(*self._values, reason).inc()


class Timeline:
    """When things happened to one sequence."""

    def __init__(self, metrics: EngineMetrics, prompt: Prompt, arrived_at: float) -> None:
        self._metrics, self._prompt, self._arrived_at = metrics, prompt, arrived_at
        self._started = False
        self._first_token_at = self._last_token_at = 0.0
        self.queue_s = self._prefill_s = 0.0
        self._tokens = 0

    @property
    def first_token_s(self) -> float:
        """From its arrival; 0 without one."""
        return self._first_token_at - self._arrived_at if self._tokens else 0.0

    def saw(self, piece: Piece) -> None:
        now = time.perf_counter()
        if not self._started:
            self._start(piece)
        if piece.tokens:
            self._count_tokens(len(piece.tokens), now)

    def _start(self, piece: Piece) -> None:
        self._started = True
        self.queue_s, self._prefill_s = piece.queue_s, piece.prefill_s
        self._metrics.counters["prompt_tokens"].inc(len(self._prompt.tokens))
        self._metrics.counters["prompt_tokens_cached"].inc(piece.cached_tokens)

    def _count_tokens(self, tokens: int, now: float) -> None:
        if self._tokens == 0:
            self._first_token_at = now
            self._metrics.observe("time_to_first_token_seconds", now - self._arrived_at)
        else:
            self._metrics.observe("inter_token_latency_seconds", now - self._last_token_at)
        self._metrics.counters["generation_tokens"].inc(tokens)
        self._tokens += tokens
        self._last_token_at = now

    def end(self, reason: str) -> None:
        """Count the sequence, however it ended; its times only if it started."""
        self._metrics.count_end(reason)
        if not self._started:
            return
        decode_s = max(0.0, self._last_token_at - self._first_token_at)
        values = {
            "e2e_request_latency_seconds": time.perf_counter() - self._arrived_at,
            "request_queue_time_seconds": self.queue_s,
            "request_prefill_time_seconds": self._prefill_s,
            "request_decode_time_seconds": decode_s,
            "request_inference_time_seconds": self._prefill_s + decode_s,
            "request_prompt_tokens": len(self._prompt.tokens),
            "request_generation_tokens": self._tokens,
            "request_max_num_generation_tokens": self._tokens,
            "request_params_max_tokens": self._prompt.sampling.max_tokens,
        }
        for name, value in values.items():
            self._metrics.observe(name, value)
        if self._tokens > 1:
            self._metrics.observe("request_time_per_output_token_seconds", decode_s / (self._tokens - 1))


class EngineCollector(Collector):
    """The engine's own state, read at the moment of a scrape."""

    def __init__(self, engine: Engine, lifecycle: Lifecycle, model_name: str) -> None:
        self._engine, self._lifecycle = engine, lifecycle
        self._values = (model_name, "0")
        self._info: EngineInfo | None = None

    def describe(self) -> Iterable[Metric]:
        """Nothing at registration: the engine is not loaded yet."""
        return ()

    def collect(self) -> Iterator[Metric]:
        if self._engine.ready:
            self._info = self._engine.info
        yield self._gauge("twofour:ready", float(self._engine.ready))
        yield self._gauge("twofour:draining", float(self._lifecycle.ending))
        yield self._gauge("twofour:http_requests_in_flight", self._lifecycle.in_flight)
        yield self._total("twofour:engine_restarts", self._engine.restarts)
        if self._info is not None:
            yield from self._loaded(self._info)
            yield from self._state(self._info)

    def _state(self, info: EngineInfo) -> Iterator[Metric]:
        stats = self._engine.stats
        yield self._gauge("vllm:num_requests_running", stats.running)
        yield self._gauge("vllm:num_requests_waiting", stats.waiting)
        yield self._gauge("vllm:kv_cache_usage_perc", stats.kv_tokens_used / max(1, info.kv_tokens))
        yield self._gauge("twofour:engine_heartbeat_age_seconds", self._engine.heartbeat_age_s)
        yield self._gauge("twofour:peak_device_bytes", stats.peak_device_bytes)
        yield self._step_sizes(self._engine.step_sizes)
        yield self._total("vllm:num_preemptions", stats.preemptions)
        yield self._total("vllm:prefix_cache_queries", stats.prefix_queries)
        yield self._total("vllm:prefix_cache_hits", stats.prefix_hits)
        yield self._total("twofour:engine_steps", stats.steps)
        yield self._total("twofour:replayed_steps", stats.replayed_steps)
        yield self._total("twofour:not_finite_logits", stats.not_finite)

    def _loaded(self, info: EngineInfo) -> Iterator[Metric]:
        yield self._gauge("twofour:kv_capacity_tokens", info.kv_tokens)
        yield self._gauge("twofour:cuda_graphs", info.cuda_graphs)
        yield self._gauge("twofour:cuda_graph_bytes", info.cuda_graph_bytes)
        yield self._gauge("twofour:sparse", float(info.sparse))
        kinds = {"total": info.weight_bytes, "linears": info.linear_bytes}
        yield self._gauges("twofour:weight_bytes", "kind", kinds)
        yield self._gauges("twofour:kernel_linears", "kernel", info.kernels)
        yield self._gauge("twofour:dense_linears", info.kernels.get("dense", 0))
        runner = GaugeMetricFamily("twofour:runner_info", "Runner.", labels=(*LABELS, "runner", "reason"))
        runner.add_metric((*self._values, info.runner, info.runner_reason), 1)
        yield runner
        weights = GaugeMetricFamily("twofour:weights_info", "Dense.", labels=(*LABELS, "lm_head", "dense_linears"))
        weights.add_metric((*self._values, info.head_values, info.dense_values), 1)
        yield weights
        yield self._gauge("twofour:max_num_seqs", info.max_num_seqs)
        yield self._gauge("twofour:max_num_batched_tokens", info.max_num_batched_tokens)
        yield self._gauge("twofour:step_piece_tokens", info.piece)
        cache = {
            "block_size": str(info.block_size),
            "num_gpu_blocks": str(info.kv_tokens // info.block_size),
            "enable_prefix_caching": str(info.prefix_cache),
        }
        config = GaugeMetricFamily("vllm:cache_config_info", "KV cache.", labels=(*LABELS, *cache))
        config.add_metric((*self._values, *cache.values()), 1)
        yield config

    def _step_sizes(self, sizes: Mapping[int, int]) -> Metric:
        """A histogram, although its name, which is vLLM's, ends like that of a counter."""
        family = HistogramMetricFamily("vllm:iteration_tokens_total", "Tokens computed by a step.", labels=LABELS)
        limits = {**{str(float(limit)): limit for limit in STEP_TOKENS}, "+Inf": inf}
        buckets = [(le, sum(n for size, n in sizes.items() if size <= limit)) for le, limit in limits.items()]
        family.add_metric(self._values, buckets, sum(size * n for size, n in sizes.items()))
        return family

    def _gauge(self, name: str, value: float) -> Metric:
        family = GaugeMetricFamily(name, name.partition(":")[2], labels=LABELS)
        family.add_metric(self._values, value)
        return family

    def _gauges(self, name: str, label: str, values: Mapping[str, int]) -> Metric:
        family = GaugeMetricFamily(name, name.partition(":")[2], labels=(*LABELS, label))
        for key, value in values.items():
            family.add_metric((*self._values, key), value)
        return family

    def _total(self, name: str, value: int) -> Metric:
        family = CounterMetricFamily(name, name.partition(":")[2], labels=LABELS)
        family.add_metric(self._values, value)
        return family
