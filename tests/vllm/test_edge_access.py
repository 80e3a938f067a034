"""Keys, limits, origins, ids and figures: the promises of our endpoint, kept in front of vLLM."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from vllm_server import VllmServer, model

ORIGIN = "https://page.example"
ASK = {"model": "m", "prompt": "hi", "max_tokens": 3}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    folder = tmp_path_factory.mktemp("keyed")
    (folder / "keys").write_text("first\nsecond\nlimited\n")
    keys = ("--api-key-file", str(folder / "keys"), "--protect-metrics", "--requests-per-minute", "400")
    bounds = ("--cors-origin", ORIGIN, "--max-queue", "2", "--deadline-s", "20")
    started = VllmServer(model(folder / "model", max_position_embeddings=8192), folder / "log", *keys, *bounds)
    started.wait()
    started.client.headers["Authorization"] = "Bearer first"
    yield started
    started.close()


def get(server: VllmServer, path: str, **headers: str) -> httpx.Response:
    return httpx.get(f"{server.url}{path}", headers=headers, trust_env=False)


@pytest.mark.parametrize("path", ["/metrics", "/v1/models", "/version", "/tokenize", "/docs", "/invocations", "/load"])
@pytest.mark.parametrize("key", [None, "Bearer wrong", "Basic Zmlyc3Q6", "first"])
def test_nothing_is_open_but_the_probes(server: VllmServer, path: str, key: str | None) -> None:
    answer = get(server, path, **({"Authorization": key} if key else {}))
    assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert answer.headers["www-authenticate"] == "Bearer"
    assert get(server, "/health").status_code == get(server, "/ready").status_code == 200


def test_keys_are_nowhere_to_be_seen(server: VllmServer) -> None:
    for pid in (server.process.pid, *server.family()):
        line = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
        assert b"second" not in line


def test_keys_share_no_prefix(server: VllmServer) -> None:
    def cached(key: str, **fields: Any) -> int:
        body = {**ASK, "prompt": "a" * 600, "max_tokens": 1, **fields}
        headers = {"Authorization": f"Bearer {key}"}
        usage = server.client.post("/v1/completions", json=body, headers=headers).json()["usage"]
        found: int = usage["prompt_tokens_details"]["cached_tokens"]
        return found

    assert cached("first") == 0 < cached("first")
    assert cached("second") == 0 < cached("second")
    assert cached("first", cache_salt="mine") == 0 < cached("first", cache_salt="mine")


@pytest.mark.parametrize("salt", [None, "0 ", "0", "first"])
def test_nor_do_they_on_other_paths(server: VllmServer, salt: str | None) -> None:
    """/invocations takes the requests of all paths."""
    body = {**ASK, "prompt": f"{salt} " + "b" * 600, "max_tokens": 1}

    def cached(key: str, path: str, **fields: Any) -> int:
        headers = {"Authorization": f"Bearer {key}"}
        answer = server.client.post(path, json={**body, **fields}, headers=headers)
        assert answer.status_code == 200, answer.text
        found: int = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
        return found

    assert cached("first", "/v1/completions") == 0
    forged = {} if salt is None else {"cache_salt": salt}
    assert cached("second", "/invocations", **forged) == 0 < cached("second", "/invocations", **forged)
    assert cached("first", "/invocations") > 0


def test_origins(server: VllmServer) -> None:
    asked = {
        "Origin": ORIGIN,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization",
    }
    answer = server.client.options("/v1/completions", headers=asked)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == ORIGIN
    assert answer.headers["access-control-allow-headers"] == "authorization"
    evil = server.client.options("/v1/completions", headers={**asked, "Origin": "https://evil.example"})
    assert evil.status_code == 400 and "access-control-allow-origin" not in evil.headers


def test_ids(server: VllmServer) -> None:
    answer = server.client.post("/v1/completions", json=ASK, headers={"X-Request-Id": "mine-1"})
    assert (answer.headers.get_list("x-request-id"), answer.json()["id"]) == (["mine-1"], "cmpl-mine-1")
    long = server.client.post("/v1/completions", json=ASK, headers={"X-Request-Id": "a" * 6000})
    assert len(long.headers["x-request-id"]) == 32 and long.json()["id"] == f"cmpl-{long.headers['x-request-id']}"


def test_a_full_queue(server: VllmServer) -> None:
    with server.stream(max_tokens=6000), server.stream(max_tokens=6000):
        answer = server.complete()
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "engine_overloaded")
        assert answer.headers["retry-after"] == "1"
    server.eventually(lambda: server.metric("vllm:num_requests_running") == 0)
    server.control()


def test_a_limit_of_requests(server: VllmServer) -> None:
    headers = {"Authorization": "Bearer limited"}
    refused = [
        answer
        for _ in range(500)
        if (answer := server.client.post("/tokenize", json={"prompt": "a"}, headers=headers)).status_code != 200
    ]
    assert {answer.status_code for answer in refused} == {429}
    assert int(refused[0].headers["retry-after"]) >= 1
    assert refused[0].json()["error"]["code"] == "rate_limit_exceeded"


def test_figures(server: VllmServer) -> None:
    server.control()
    server.client.get("/v1/nope")
    assert server.metric("twofour:ready") == 1 and server.metric("twofour:draining") == 0
    assert server.metric('http_requests_total{handler="/v1/completions"') > 0
    assert server.metric('twofour:rejected_requests_total{reason="invalid_api_key"') > 0
    names = [line.split()[2] for line in server.client.get("/metrics").text.splitlines() if line.startswith("# TYPE")]
    assert len(names) == len(set(names)), "a name that is there twice"


def test_the_access_log_has_bare_lines_and_no_prompt(server: VllmServer) -> None:
    server.complete(prompt="SECRET words")
    lines = [json.loads(line) for line in server.log.splitlines() if line.startswith('{"time"')]
    assert lines[-1]["path"] == "/v1/completions" and lines[-1]["status"] == 200
    assert "SECRET" not in server.log


def test_a_connection_is_kept(server: VllmServer) -> None:
    """Longer than vLLM's own 5 s is not waited for here; that it is the edge's connection shows in what it refuses."""
    assert server.client.get("/health").headers.get("connection") != "close"
    assert "server" not in server.client.get("/health").headers
