import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from twofour.bench.load.endpoint import Endpoint, Memory, State, prefix_hit_share, served_model, state
from twofour.bench.proof.mock import Script, serving
from twofour.prune.errors import ServerError

METRICS = """
# TYPE twofour:weight_bytes gauge
twofour:weight_bytes{model_name="m",engine="0",kind="total"} 2.69e+08
twofour:weight_bytes{model_name="m",engine="0",kind="linears"} 2.12e+08
twofour:kernel_linears{model_name="m",engine="0",kernel="reference"} 200
twofour:kernel_linears{model_name="m",engine="0",kernel="dense"} 10
twofour:peak_device_bytes{model_name="m",engine="0"} 0
vllm:prefix_cache_hits_total{model_name="m",engine="0"} 64
vllm:prefix_cache_queries_total{model_name="m",engine="0"} 6400
vllm:num_requests_running{model_name="m",engine="0"} 1
"""


def test_what_the_metrics_hold() -> None:
    found = state(METRICS)
    assert found.memory == Memory(269_000_000, 212_000_000, None, 0)
    assert found.kernels == {"reference": 200, "dense": 10}
    assert (found.prefix_hit_tokens, found.prefix_queried_tokens) == (64, 6400)


def test_several_engines_count_together() -> None:
    two = (
        METRICS
        + """
vllm:prefix_cache_hits_total{model_name="m",engine="1"} 1
vllm:prefix_cache_queries_total{model_name="m",engine="1"} 100
"""
    )
    found = state(two)
    assert (found.prefix_hit_tokens, found.prefix_queried_tokens) == (65, 6500)


def test_a_share_of_hits_is_that_between_two_scrapes() -> None:
    before, after = State(Memory(), {}, 64, 6400), State(Memory(), {}, 65, 6500)
    assert prefix_hit_share(before, after) == 0.01
    for unknown in (None, State(Memory(), {}, None, None), before):
        assert prefix_hit_share(before, unknown) is None


def test_a_foreign_server_says_less() -> None:
    assert state("").memory == Memory()
    with serving(Script()) as mock:  # it answers every GET with its list of models
        assert Endpoint(mock.url, "mock").scrape() is None


def test_a_dead_address_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
    assert Endpoint(url, "m").ready() is False
    with pytest.raises(ServerError, match=rf"no answer from {url}/metrics"):
        Endpoint(url, "m").scrape()


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (
            "301 Moved\r\nLocation: https://h/v1/models?key=s",
            "status 301: the server sends on to https://h/v1/models; g",
        ),
        ("401 No", "status 401: ; check the address and the key"),
        ("200 OK\r\nContent-Type: text/html", "text/html instead of JSON: ; check the address, and log-ins on the way"),
    ],
)
def test_what_comes_instead_of_the_models_is_named(answer: str, said: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:
        pool.submit(answer_once, listener, f"HTTP/1.1 {answer}\r\nContent-Length: 0\r\n\r\n".encode())
        with pytest.raises(ServerError) as caught:
            served_model(f"http://127.0.0.1:{listener.getsockname()[1]}")
    assert said in str(caught.value)


def answer_once(listener: socket.socket, answer: bytes) -> None:
    connection, _ = listener.accept()
    with connection:
        connection.recv(4096)
        connection.sendall(answer)


def test_a_refusal_carries_the_servers_words() -> None:
    with (
        serving(Script(refuse_every=1)) as mock,
        pytest.raises(ServerError, match=r"status 503: .*the mock refuses"),
    ):
        Endpoint(mock.url, "mock").ask("/v1/completions", {"prompt": "a"})
