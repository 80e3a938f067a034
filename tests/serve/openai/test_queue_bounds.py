"""How many sequences and tokens may wait, and what is refused beyond that."""

from typing import Any

from asking import ask, read_all


def test_queue_bound_by_sequences(launch: Any) -> None:
    server = launch(launch.engine(hold_after=1), max_queue=2)
    connection = ask(server, stream=True, n=2)
    for _ in range(2):
        server.engine.started.get(timeout=5)
    refused = server.complete()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_overloaded")
    assert refused.headers["retry-after"] == "1"
    assert server.metric("vllm:admission_rejections_total") == 1
    server.engine.release()
    read_all(connection)
    server.control()
    assert server.complete(n=3).status_code == 400


def test_a_full_queue_refuses_before_it_reads(launch: Any) -> None:
    """What is in the request costs nothing, right or wrong."""
    server = launch(launch.engine(hold_after=1), max_queue=1)
    with ask(server, stream=True) as connection:
        server.engine.started.get(timeout=5)
        for path in ("/v1/completions", "/v1/chat/completions"):
            refused = server.client.post(path, content=b"{", headers={"Content-Type": "application/json"})
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_overloaded")
        assert server.metric("vllm:admission_rejections_total") == 2
        assert server.metric('twofour:rejected_requests_total{reason="engine_overloaded"') == 2
        server.engine.release()
        read_all(connection)
    server.control()


def test_queue_bound_by_prompt_tokens(launch: Any) -> None:
    server = launch(launch.engine(hold_after=1), max_queue_tokens=10)
    connection = ask(server, stream=True, prompt=[1] * 20)
    server.engine.started.get(timeout=5)
    refused = server.complete()
    assert (refused.status_code, refused.json()["error"]["code"]) == (503, "engine_overloaded")
    server.engine.release()
    read_all(connection)
    server.control()
