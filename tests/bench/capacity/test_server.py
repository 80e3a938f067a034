from typing import Any

import pytest

from twofour.bench.capacity.profile import EngineLimits
from twofour.bench.capacity.server import look
from twofour.bench.load.endpoint import Endpoint
from twofour.prune.errors import InputError

OURS = """
# TYPE twofour:max_num_seqs gauge
twofour:max_num_seqs{model_name="m"} 8.0
# TYPE twofour:kv_capacity_tokens gauge
twofour:kv_capacity_tokens{model_name="m"} 640.0
# TYPE twofour:max_num_batched_tokens gauge
twofour:max_num_batched_tokens{model_name="m"} 512.0
# TYPE twofour:step_piece_tokens gauge
twofour:step_piece_tokens{model_name="m"} 64.0
# TYPE twofour:sparse gauge
twofour:sparse{model_name="m"} 0.0
# TYPE twofour:weight_bytes gauge
twofour:weight_bytes{kind="total"} 2000.0
# TYPE twofour:weights_info gauge
twofour:weights_info{lm_head="int8",dense_linears="bfloat16"} 1.0
# TYPE vllm:cache_config_info gauge
vllm:cache_config_info{block_size="16",num_gpu_blocks="40",enable_prefix_caching="False"} 1.0
"""
THEIRS = '# TYPE vllm:cache_config_info gauge\nvllm:cache_config_info{block_size="16",num_gpu_blocks="None"} 1.0\n'


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Any:
    def says(metrics: str | None, length: int | None = 2048) -> Endpoint:
        monkeypatch.setattr(Endpoint, "metrics", lambda _: metrics)
        monkeypatch.setattr(Endpoint, "models", lambda _: [{"id": "m", "created": 7, "max_model_len": length}])
        monkeypatch.setattr(Endpoint, "version", lambda _: "1")
        return Endpoint("http://a", "m")

    return says


def test_our_server_says_all(endpoint: Any) -> None:
    found = look(endpoint(OURS), {}, "a machine")
    assert found.limits == EngineLimits(8, 512, 40, 16, 2048, piece=64, prefix_cache=False)
    assert (found.sparse, found.weight_bytes, found.weight_bits) == (False, 2000, 16)


def test_what_others_do_not_say_is_given(endpoint: Any) -> None:
    given = {"max_num_seqs": 4, "max_num_batched_tokens": 100, "kv_blocks": 9}
    assert look(endpoint(THEIRS), given, "x").limits == EngineLimits(4, 100, 9, 16, 2048, policy="vllm")
    for missing in given:
        with pytest.raises(InputError, match="--" + missing.replace("_", "-")):
            look(endpoint(THEIRS), given | {missing: None}, "x")
    with pytest.raises(InputError, match="--context-length"):
        look(endpoint(None, None), given | {"block_size": 16}, "x")


def test_hashes_tell_what_differs(endpoint: Any) -> None:
    first, again = (look(endpoint(OURS), {}, "a machine").hashes for _ in range(2))
    assert first == again
    other = look(endpoint(OURS), {"max_num_seqs": 9}, "another").hashes
    assert (other.model, other.engine) == (first.model, first.engine)
    assert other.hardware != first.hardware and other.settings != first.settings
