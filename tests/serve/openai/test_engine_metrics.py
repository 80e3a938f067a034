"""What /metrics says, after requests whose outcome is known."""

from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from twofour.serve.engine.types import Stats


def families(server: Any) -> dict[str, Any]:
    return {family.name: family for family in text_string_to_metric_families(server.client.get("/metrics").text)}


def value(server: Any, name: str, **labels: str) -> float:
    """The one sample of that name whose labels include these."""
    found = [
        sample.value
        for family in families(server).values()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    assert len(found) == 1, (name, found)
    return float(found[0])


def test_tokens_latencies_and_ends_of_known_requests(launch: Any) -> None:
    server = launch()
    server.complete(max_tokens=100, n=2)
    server.complete(prompt="abc", max_tokens=4)
    ended = {reason: value(server, "vllm:request_success_total", finished_reason=reason) for reason in ENDS}
    tokens = server.complete(max_tokens=100).json()["usage"]["completion_tokens"]
    assert ended == {"stop": 2, "length": 1, "abort": 0, "error": 0}
    assert value(server, "vllm:prompt_tokens_total", model_name="m", engine="0") == 2 + 2 + 3 + 2
    assert value(server, "vllm:generation_tokens_total") == 3 * tokens + 4
    assert value(server, "vllm:time_to_first_token_seconds_count") == 4
    assert value(server, "vllm:inter_token_latency_seconds_count") == 3 * (tokens - 1) + 3
    assert value(server, "vllm:e2e_request_latency_seconds_count") == 4
    assert abs(value(server, "vllm:request_queue_time_seconds_sum") - 4 * 0.01) < 1e-9
    assert abs(value(server, "vllm:request_prefill_time_seconds_sum") - 4 * 0.02) < 1e-9
    assert value(server, "vllm:request_generation_tokens_sum") == 3 * tokens + 4
    assert value(server, "vllm:request_prompt_tokens_sum") == 9
    assert value(server, "vllm:request_params_max_tokens_sum") == 304
    assert value(server, "vllm:request_params_n_sum") == 4


ENDS = ("stop", "length", "abort", "error")


def test_failed_requests_are_counted_apart(launch: Any) -> None:
    server = launch(launch.engine(fail_after=2))
    server.complete()
    assert value(server, "vllm:request_success_total", finished_reason="error") == 1
    assert value(server, "vllm:request_success_total", finished_reason="abort") == 0


def test_the_state_of_the_engine_is_that_of_the_scrape(launch: Any) -> None:
    server = launch()
    server.engine.restarts = 4
    server.engine.stats = Stats(
        running=3,
        waiting=2,
        kv_tokens_used=1024,
        preemptions=5,
        prefix_queries=70,
        prefix_hits=60,
        steps=9,
        not_finite=3,
        replayed_steps=6,
        peak_device_bytes=12345,
    )
    expected = {
        "vllm:num_requests_running": 3,
        "vllm:num_requests_waiting": 2,
        "vllm:kv_cache_usage_perc": 0.25,
        "vllm:num_preemptions_total": 5,
        "vllm:prefix_cache_queries_total": 70,
        "vllm:prefix_cache_hits_total": 60,
        "twofour:peak_device_bytes": 12345,
        "twofour:kv_capacity_tokens": 4096,
        "twofour:engine_heartbeat_age_seconds": 0.1,
        "twofour:draining": 0,
        "twofour:ready": 1,
        "twofour:engine_restarts_total": 4,
        "twofour:not_finite_logits_total": 3,
        "twofour:replayed_steps_total": 6,
        "twofour:cuda_graphs": 36,
        "twofour:cuda_graph_bytes": 5000,
        "twofour:sparse": 1,
        "twofour:dense_linears": 2,
        "twofour:max_num_seqs": 32,
        "twofour:max_num_batched_tokens": 2048,
        "twofour:step_piece_tokens": 256,
    }
    assert {name: value(server, name, model_name="m", engine="0") for name in expected} == expected
    assert value(server, "twofour:weight_bytes", kind="total") == 2000
    assert value(server, "twofour:weight_bytes", kind="linears") == 1500
    assert value(server, "twofour:kernel_linears", kernel="reference") == 7
    assert value(server, "twofour:kernel_linears", kernel="dense") == 2
    assert value(server, "twofour:weights_info", lm_head="int8", dense_linears="bfloat16") == 1
    assert value(server, "twofour:runner_info", runner="fused", reason="a reason") == 1
    cache = {"block_size": "16", "num_gpu_blocks": "256", "enable_prefix_caching": "True"}
    assert value(server, "vllm:cache_config_info", **cache) == 1


def test_step_sizes_are_a_histogram(launch: Any) -> None:
    server = launch()
    server.engine.step_sizes = {1: 10, 5: 3, 8: 2, 300: 1, 99999: 1}
    counts = {le: value(server, "vllm:iteration_tokens_total_bucket", le=le) for le in ("1.0", "8.0", "512.0", "+Inf")}
    assert counts == {"1.0": 10, "8.0": 15, "512.0": 16, "+Inf": 17}
    assert value(server, "vllm:iteration_tokens_total_count", model_name="m", engine="0") == 17
    assert value(server, "vllm:iteration_tokens_total_sum") == 10 + 15 + 16 + 300 + 99999


def test_reasons_of_refusal_are_there_from_the_start(launch: Any) -> None:
    server = launch()
    assert value(server, "twofour:rejected_requests_total", reason="invalid_api_key") == 0
    server.complete(n=0)
    server.eventually(lambda: value(server, "twofour:rejected_requests_total", reason="invalid_request_error") == 1)


def test_before_it_is_loaded_only_what_is_known(launch: Any) -> None:
    server = launch(launch.engine(ready=False))
    assert value(server, "twofour:ready") == 0
    assert "vllm:num_requests_running" not in families(server)
    assert "twofour:weight_bytes" not in families(server)


def test_what_was_loaded_stays_while_the_heartbeat_is_late(launch: Any) -> None:
    server = launch()
    assert value(server, "twofour:kv_capacity_tokens") == 4096
    server.engine.ready = False
    assert value(server, "twofour:kv_capacity_tokens") == 4096
    assert value(server, "twofour:ready") == 0


def test_the_series_that_routers_and_dashboards_read(launch: Any) -> None:
    server = launch()
    server.complete()
    names = set(families(server))
    wanted = {
        "kv_cache_usage_perc",
        "num_requests_running",
        "num_requests_waiting",
        "prompt_tokens",
        "generation_tokens",
        "request_success",
        "e2e_request_latency_seconds",
        "time_to_first_token_seconds",
        "inter_token_latency_seconds",
        "request_time_per_output_token_seconds",
        "request_queue_time_seconds",
        "request_prefill_time_seconds",
        "request_decode_time_seconds",
        "request_inference_time_seconds",
        "request_prompt_tokens",
        "request_generation_tokens",
        "request_max_num_generation_tokens",
        "request_params_n",
        "request_params_max_tokens",
        "num_preemptions",
        "prefix_cache_queries",
        "prefix_cache_hits",
        "cache_config_info",
        "iteration_tokens_total",
    }
    assert {f"vllm:{name}" for name in wanted} <= names


def test_two_servers_in_one_process_count_apart(launch: Any) -> None:
    one, other = launch(), launch()
    one.complete()
    assert value(one, "vllm:generation_tokens_total") == 16
    assert value(other, "vllm:generation_tokens_total") == 0
