"""The error table and the small routes."""

from collections.abc import Callable
from typing import Any

import pytest

import twofour
from twofour.serve import app as serve_app
from twofour.serve.config import ServeConfig
from twofour.serve.edge.auth import digest
from twofour.serve.edge.harden import EdgeConfig
from twofour.serve.engine.types import StepRecord
from twofour.serve.openai.prompts.encoding import Encoder

Refused = Callable[..., dict[str, Any]]
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
JSON = {"Content-Type": "application/json"}


def test_unknown_model(shared: Any, refused: Refused) -> None:
    refused(shared.complete(model="gpt-4"), 404, "model_not_found", "model")
    refused(shared.chat(model="gpt-4"), 404, "model_not_found", "model")
    refused(shared.client.get("/v1/models/gpt-4"), 404, "model_not_found", "model")


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/responses/resp_1", "/v1/embeddings"])
def test_what_others_have_is_pointed_to(shared: Any, refused: Refused, path: str) -> None:
    for answer in (shared.client.get(path), shared.client.post(path, json={"model": "m", "input": "hi"})):
        message = refused(answer, 404)["message"]
        assert "/v1/chat/completions" in message or "embedding" in message


def test_tools_are_refused_with_a_way_out(shared: Any, refused: Refused) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    error = refused(shared.chat(tools=tools), 400, "unsupported_parameter", "tools")
    assert "response_format" in error["message"]


def test_unknown_path_and_method(shared: Any, refused: Refused) -> None:
    refused(shared.client.get("/v1/nope"), 404)
    refused(shared.client.get("/docs"), 404)
    refused(shared.client.get("/openapi.json"), 404)
    refused(shared.client.get("/v1/models/"), 404, "model_not_found", "model")
    answer = shared.client.get(TEXT)
    refused(answer, 405)
    assert answer.headers["allow"] == "POST"
    refused(shared.client.delete("/v1/models"), 405)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [1] * 300},
        {"prompt": [1] * 256},
        {"prompt": "x" * 300},
        {"prompt": "x" * 3_000_000},
        {"prompt": [1] * 200, "max_tokens": 100},
        {"prompt": ["a", "x" * 300]},
        {"prompt": [1] * 300, "echo": True, "max_tokens": 0},
    ],
    ids=["ids", "exactly", "text", "3 MB", "with max_tokens", "second", "scoring"],
)
def test_context_overflow_in_the_words_that_clients_look_for(
    shared: Any, refused: Refused, fields: dict[str, Any]
) -> None:
    error = refused(shared.complete(**fields), 400, "context_length_exceeded", "prompt")
    assert "This model's maximum context length is 256 tokens" in error["message"]
    assert "prompt is too long: " in error["message"]
    shared.control()


def test_chat_overflow(shared: Any, refused: Refused) -> None:
    for size in (300, 3_000_000):
        answer = shared.chat({"role": "user", "content": "x" * size})
        refused(answer, 400, "context_length_exceeded", "messages")


def test_an_answer_that_cannot_fit_is_not_shortened(shared: Any, refused: Refused) -> None:
    refused(shared.chat(max_tokens=250), 400, "context_length_exceeded", "messages")


def test_a_hopeless_text_is_refused_unread(
    shared: Any, refused: Refused, byte_tokenizer: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr(Encoder, "encode", None)
    refused(shared.complete(prompt="x" * 3_000_000), 400, "context_length_exceeded", "prompt")


def test_what_fits_the_model_and_not_the_cache(launch: Any, refused: Refused) -> None:
    server = launch(launch.engine(kv_tokens=64))
    refused(server.complete(prompt=[1] * 65), 400, "context_length_exceeded", "prompt")
    refused(server.complete(prompt=[1] * 60), 400, "context_length_exceeded", "prompt")
    assert server.complete(prompt=[1] * 60, max_tokens=4).status_code == 200


def test_max_tokens_zero_needs_echo(shared: Any, refused: Refused) -> None:
    refused(shared.complete(max_tokens=0), 400, None, "max_tokens")
    assert shared.complete(max_tokens=0, echo=True).status_code == 200


def test_not_ready(launch: Any, refused: Refused) -> None:
    server = launch()
    server.engine.ready = False
    for answer in (
        server.complete(),
        server.chat(),
        server.client.get("/v1/models"),
        server.client.get("/ready"),
    ):
        refused(answer, 503, "not_ready")
        assert answer.headers["retry-after"] == "1"
    assert server.client.get("/health").status_code == 200
    assert server.client.get("/metrics").status_code == 200
    server.engine.ready = True
    assert server.client.get("/ready").status_code == 200
    server.control()


def test_a_dead_engine(launch: Any, refused: Refused) -> None:
    server = launch()
    server.engine.healthy = server.engine.ready = False
    refused(server.client.get("/health"), 503, "engine_dead")
    refused(server.client.get("/ready"), 503, "not_ready")


@pytest.mark.parametrize("stream", [False, True])
def test_a_bug_is_an_internal_error_with_an_id(launch: Any, refused: Refused, caplog: Any, stream: bool) -> None:
    server = launch()

    def broken(prompt: Any) -> Any:
        raise ZeroDivisionError("secret")

    script, server.engine.script = server.engine.script, broken
    answer = server.complete(stream=stream)
    error = refused(answer, 500)
    assert answer.headers["x-request-id"] in error["message"]
    assert "secret" not in answer.text
    server.eventually(lambda: "ZeroDivisionError" in caplog.text)
    server.engine.script = script
    server.control()


def test_metrics_know_every_route_by_its_name(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_app, "harden", lambda app, *others: app)
    app: Any = serve_app.create_app(launch.engine(), ServeConfig("m"), launch.tokenizer)
    paths = set(app.openapi()["paths"])
    assert {"/", "/health", "/v1/models", "/v1/completions"} < serve_app.PATHS < paths
    assert paths - serve_app.PATHS == {"/v1/models/{model}"}


def test_models(shared: Any) -> None:
    model = shared.client.get("/v1/models/m").json()
    assert shared.client.get("/v1/models").json() == {"object": "list", "data": [model]}
    assert (model["id"], model["object"], model["owned_by"]) == ("m", "model", "twofour")
    assert model["max_model_len"] == 256


def test_version(shared: Any) -> None:
    assert shared.client.get("/version").json()["version"] == twofour.__version__


def test_the_step_log(launch: Any) -> None:
    server = launch()
    server.engine.steps = [StepRecord(16, 0, 16, 0.5, 0, 136, 3, 7.0), StepRecord(4, 1, 21, 0.25, 1, 74, 2, 8.0)]
    server.engine.step_sizes = {16: 1, 5: 1, 1: 10_000}
    assert server.client.get("/debug/steps").json() == {
        "total": 10_002,
        "prefill_tokens": [16, 4],
        "decodes": [0, 1],
        "kv_tokens": [16, 21],
        "seconds": [0.5, 0.25],
        "decode_kv_tokens": [0, 1],
        "prefill_pairs": [136, 74],
        "waiting": [3, 2],
        "started_at": [7.0, 8.0],
    }
    keyed = launch(edge=EdgeConfig(api_keys=(digest(b"k"),)))
    assert keyed.client.get("/debug/steps").status_code == 401


def test_tokenize_and_back(shared: Any, refused: Refused) -> None:
    body = shared.client.post("/tokenize", json={"model": "m", "prompt": "hello wö"}).json()
    assert body["count"] == len(body["tokens"])
    assert body["max_model_len"] == 256
    again = shared.client.post("/detokenize", json={"tokens": body["tokens"]}).json()
    assert again == {"prompt": "hello wö"}
    chat = shared.client.post("/tokenize", json={"messages": [{"role": "user", "content": "a"}]}).json()
    text = shared.client.post("/detokenize", json={"tokens": chat["tokens"]}).json()["prompt"]
    assert text == "<|user|>user: a<|end|><|assistant|>"
    refused(shared.client.post("/tokenize", json={}), 400, None, "prompt")
    refused(shared.client.post("/tokenize", content='{"prompt": "\\ud800"}', headers=JSON), 400, "invalid_json")
    refused(shared.client.post("/detokenize", json={"tokens": [10**6]}), 400, None, "tokens")
    refused(shared.client.post("/detokenize", json={"model": "x", "tokens": []}), 404, "model_not_found", "model")


def test_tokenize_as_vllm_does(shared: Any, refused: Refused) -> None:
    """Tokens by name, and a chat that ends elsewhere than at the assistant's turn."""

    def text(*contents: str, **fields: Any) -> str:
        messages = [{"role": "user", "content": content} for content in contents]
        tokens = shared.client.post("/tokenize", json={"messages": messages, **fields}).json()["tokens"]
        decoded: str = shared.client.post("/detokenize", json={"tokens": tokens}).json()["prompt"]
        return decoded

    named = shared.client.post("/tokenize", json={"prompt": "hello w", "return_token_strs": True}).json()
    assert named["token_strs"] == ["hell", "o", "Ġw"]
    assert shared.client.post("/tokenize", json={"prompt": "hello w"}).json()["token_strs"] is None
    assert text("a", continue_final_message=True) == "<|user|>user: a"
    assert text("a", add_special_tokens=True) == text("a")
    both = {"messages": [{"role": "user", "content": "a"}], "add_generation_prompt": True}
    refused(shared.client.post("/tokenize", json={**both, "continue_final_message": True}), 400, None, "messages")
    special = {"messages": [{"role": "user", "content": "<|end|>"}], "add_special_tokens": True}
    answer = shared.client.post("/tokenize", json=special)
    refused(answer, 400, "unsupported_parameter", "add_special_tokens")
    tools = shared.client.post("/tokenize", json={"prompt": "a", "tools": [{"type": "function"}]})
    refused(tools, 400, "unsupported_parameter", "tools")
