"""The error table, and inputs that must not pass: each refused in the one shape, and nothing worse for it."""

import json
import socket
from typing import Any

import pytest

from twofour.serve.openai.protocol import NEUTRAL

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
DEEP = "[" * 100_000 + "]" * 100_000


def refused(answer: Any, status: int, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The answer has that status and OpenAI's body, all four fields of it."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert 0 < len(error["message"]) < 400
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert (error["code"], error["param"]) == (code, param)
    assert answer.headers["content-type"] == "application/json"
    return error


BAD_FIELDS = {
    "max_tokens": [-1, 10**9, 1e30, 4.5, "abc", "4", True, []],
    "temperature": [-1, 2.5, "1", True],
    "top_p": [0, 1.1, "1"],
    "presence_penalty": [3, -3],
    "frequency_penalty": [3, -3],
    "repetition_penalty": [0, -1, 11],
    "top_k": [-2, 1e12, 10**12, 1.5],
    "min_p": [-0.1, 1.1],
    "n": [0, 10**6, 129, "2", True],
    "logit_bias": [
        "abc",
        [],
        {"abc": 1},
        {"999999": 1},
        {"-1": 1},
        {"1": 1e6},
        {"1": "2"},
        {" 1": 1},
        {"²": 1},
    ],
    "stop": [["a"] * 5, "", ["a", ""], [1], 1, "x" * 1025],
    "seed": [2**70, -(2**63) - 1, "a", 1.5],
    "min_tokens": [-1, 17, "1"],
    "stop_token_ids": [[-1], [10**6], ["a"], 5, [True], [2**40]],
    "stream": ["true", 1],
    "ignore_eos": ["yes", 0],
    "stream_options": [{"include_usage": True}, []],
}
BAD_TEXT_FIELDS = {
    **BAD_FIELDS,
    "logprobs": [21, -1, -2, "a", True],
    "echo": ["yes", 1],
    "prompt": [None, "", [], [[]], 5, [-1], [10**6], [2**40], ["a", 1], [1, "a"], [[1], "a"], [""], ["a", ""],
               [1.5], [True], [None], {"a": 1}, ["a"] * 129, [[["a"]]], "\ud800", ["\ud800"]],
}  # fmt: skip
BAD_CHAT_FIELDS = {
    **{name: values for name, values in BAD_FIELDS.items() if name != "min_tokens"},
    "max_tokens": [0, -1, "4"],
    "max_completion_tokens": [0, -1, 4.5],
    "logprobs": [5, "yes"],
    "top_logprobs": [5, 21, -1],
    "messages": [
        *([], None, "hi", [1], [{}], {"role": "user", "content": "hi"}),
        *([{"content": "hi"}], [{"role": "zzz", "content": "hi"}], [{"role": "user"}]),
        *([{"role": role, "content": None}] for role in ("user", "assistant")),
        *([{"role": "user", "content": content}] for content in (5, [5], [{"type": "text"}], "\ud800")),
        [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}],
        [{"role": "tool", "content": "5"}],
    ],
}


def cases(fields: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}-{str(value)[:20].encode('ascii', 'replace').decode()}")
        for name, values in fields.items()
        for value in values
    ]


def send(server: Any, path: str, body: dict[str, Any]) -> Any:
    # httpx writes lone surrogates and infinities otherwise; this is what a careless client sends.
    return server.client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})


@pytest.mark.parametrize(("name", "value"), cases(BAD_TEXT_FIELDS))
def test_bad_fields_of_completions(shared: Any, name: str, value: Any) -> None:
    answer = send(shared, TEXT, {"model": "m", "prompt": "hi", name: value})
    too_long = name == "max_tokens" and value == 10**9
    code, param = ("context_length_exceeded", "prompt") if too_long else (None, name)
    refused(answer, 400, code, param)
    shared.control()


@pytest.mark.parametrize(("name", "value"), cases(BAD_CHAT_FIELDS))
def test_bad_fields_of_chat(shared: Any, name: str, value: Any) -> None:
    messages = [{"role": "user", "content": "hi"}]
    answer = send(shared, CHAT, {"model": "m", "messages": messages, name: value})
    if name == "max_tokens" and value == 10**9:
        return
    refused(answer, 400, None, name)
    shared.control()


@pytest.mark.parametrize("path", [TEXT, CHAT])
@pytest.mark.parametrize(
    ("body", "code"),
    [
        ("", "invalid_json"),
        ('{"model": "m", "prompt": "hi"', "invalid_json"),
        (b'{"model": "m", "prompt": "\xff\xfe"}', "invalid_json"),
        (DEEP, "invalid_json"),
        ('{"model": "m", "max_tokens": ' + "9" * 5000 + "}", "invalid_json"),
        ('{"model": "m", "prompt": "hi", "temperature": NaN}', "invalid_json"),
        ('{"model": "m", "prompt": "hi", "temperature": Infinity}', "invalid_json"),
        ('{"model": "m", "prompt": "hi", "temperature": -Infinity}', "invalid_json"),
        ("[1]", None),
        ("null", None),
        ("5", None),
        ('"hi"', None),
    ],
    ids=lambda value: str(value)[:24].encode("ascii", "replace").decode(),
)
def test_bodies_that_are_no_request(shared: Any, path: str, body: Any, code: str | None) -> None:
    answer = shared.client.post(path, content=body, headers={"Content-Type": "application/json"})
    refused(answer, 400, code)
    shared.control()


def test_numbers_too_large_for_a_float(shared: Any) -> None:
    body = '{"model": "m", "prompt": "hi", "temperature": 1e999}'
    refused(
        shared.client.post(TEXT, content=body, headers={"Content-Type": "application/json"}),
        400,
        None,
        "temperature",
    )


@pytest.mark.parametrize("model", [5, None, True, ""])
def test_model_must_be_named(shared: Any, model: Any) -> None:
    answer = shared.complete(model=model)
    if model == "":
        refused(answer, 404, "model_not_found", "model")
    else:
        refused(answer, 400, None, "model")


def test_missing_fields(shared: Any) -> None:
    refused(shared.client.post(TEXT, json={"prompt": "hi"}), 400, None, "model")
    refused(shared.client.post(TEXT, json={"model": "m"}), 400, None, "prompt")
    refused(shared.client.post(CHAT, json={"model": "m"}), 400, None, "messages")


def test_unknown_model(shared: Any) -> None:
    refused(shared.complete(model="gpt-4"), 404, "model_not_found", "model")
    refused(shared.chat(model="gpt-4"), 404, "model_not_found", "model")
    refused(shared.client.get("/v1/models/gpt-4"), 404, "model_not_found", "model")


def test_unknown_path_and_method(shared: Any) -> None:
    refused(shared.client.get("/v1/nope"), 404)
    refused(shared.client.get("/docs"), 404)
    refused(shared.client.get("/openapi.json"), 404)
    refused(shared.client.get("/v1/models/"), 404, "model_not_found", "model")
    answer = shared.client.get(TEXT)
    refused(answer, 405)
    assert answer.headers["allow"] == "POST"
    refused(shared.client.delete("/v1/models"), 405)


UNSUPPORTED = {
    "suffix": "x",
    "best_of": 3,
    "prompt_logprobs": -1,
    "tools": [{"type": "function"}],
    "tool_choice": "auto",
    "response_format": {"type": "json_object"},
    "chat_template": "{{ 1 }}",
    "chat_template_kwargs": {"tokenize": True},
}


@pytest.mark.parametrize(("name", "value"), UNSUPPORTED.items())
@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_known_and_unsupported(shared: Any, path: str, name: str, value: Any) -> None:
    said = {"prompt": "hi", "messages": [{"role": "user", "content": "hi"}]}
    refused(shared.client.post(path, json={"model": "m", **said, name: value}), 400, "unsupported_parameter", name)


def test_true_is_no_neutral_one(shared: Any) -> None:
    refused(shared.complete(best_of=True), 400, "unsupported_parameter", "best_of")
    refused(shared.complete(store=0), 400, "unsupported_parameter", "store")


def test_neutral_fields_pass_as_null(shared: Any) -> None:
    assert shared.complete(**dict.fromkeys(NEUTRAL)).status_code == 200


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_images_are_refused_and_never_fetched(shared: Any, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/a.png"
        part = {"type": "image_url", "image_url": {"url": url}}
        answer = shared.chat({"role": "user", "content": [{"type": "text", "text": "hi"}, part]})
        refused(answer, 400, "unsupported_parameter", "messages")
        with pytest.raises(TimeoutError):
            listener.accept()


def test_messages_say_the_field_and_never_the_value(shared: Any) -> None:
    answer = shared.chat({"role": "user", "content": "a"}, {"role": "SECRET", "content": "a"})
    assert refused(answer, 400, None, "messages")["message"].startswith("messages[1]: ")
    for fields in ({"logit_bias": {"SECRET": "x"}}, {"stop": {"SECRET": 1}}, {"max_tokens": "SECRET"}):
        assert "SECRET" not in shared.complete(**fields).text
    assert "SECRET" not in answer.text


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
def test_context_overflow_in_the_words_that_clients_look_for(shared: Any, fields: dict[str, Any]) -> None:
    error = refused(shared.complete(**fields), 400, "context_length_exceeded", "prompt")
    assert "This model's maximum context length is 256 tokens" in error["message"]
    assert "prompt is too long: " in error["message"]
    shared.control()


def test_chat_overflow(shared: Any) -> None:
    for size in (300, 3_000_000):
        answer = shared.chat({"role": "user", "content": "x" * size})
        refused(answer, 400, "context_length_exceeded", "messages")
    refused(shared.chat(max_tokens=250), 400, "context_length_exceeded", "messages")


def test_a_hopeless_text_is_refused_unread(shared: Any, byte_tokenizer: Any, monkeypatch: Any) -> None:
    from twofour.serve.openai.vocabulary import Vocabulary

    monkeypatch.setattr(Vocabulary, "_encode", None)
    refused(shared.complete(prompt="x" * 3_000_000), 400, "context_length_exceeded", "prompt")


def test_what_fits_the_model_and_not_the_cache(launch: Any) -> None:
    server = launch(launch.engine(kv_tokens=64))
    refused(server.complete(prompt=[1] * 65), 400, "context_length_exceeded", "prompt")
    refused(server.complete(prompt=[1] * 60), 400, "context_length_exceeded", "prompt")
    assert server.complete(prompt=[1] * 60, max_tokens=4).status_code == 200


def test_max_tokens_zero_needs_echo(shared: Any) -> None:
    refused(shared.complete(max_tokens=0), 400, None, "max_tokens")
    assert shared.complete(max_tokens=0, echo=True).status_code == 200


def test_odd_inputs_that_are_fine(shared: Any) -> None:
    assert shared.complete(prompt="a\0b").status_code == 200
    assert shared.complete(prompt="<|user|>").status_code == 200
    twice = '{"model": "x", "model": "m", "prompt": "hi"}'
    answer = shared.client.post(TEXT, content=twice, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    both = shared.complete(n=2, temperature=0).json()["choices"]
    assert both[0]["text"] == both[1]["text"]
    assert shared.complete(logit_bias={}).status_code == 200


def test_not_ready(launch: Any) -> None:
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


def test_a_dead_engine(launch: Any) -> None:
    server = launch()
    server.engine.healthy = server.engine.ready = False
    refused(server.client.get("/health"), 503, "engine_dead")
    refused(server.client.get("/ready"), 503, "not_ready")


@pytest.mark.parametrize("stream", [False, True])
def test_a_bug_is_an_internal_error_with_an_id(launch: Any, caplog: Any, stream: bool) -> None:
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


def test_models(shared: Any) -> None:
    model = shared.client.get("/v1/models/m").json()
    assert shared.client.get("/v1/models").json() == {"object": "list", "data": [model]}
    assert (model["id"], model["object"], model["owned_by"]) == ("m", "model", "twofour")
    assert model["max_model_len"] == 256


def test_version(shared: Any) -> None:
    import twofour

    assert shared.client.get("/version").json() == {"version": twofour.__version__}


def test_tokenize_and_back(shared: Any) -> None:
    body = shared.client.post("/tokenize", json={"model": "m", "prompt": "hello wö"}).json()
    assert body["count"] == len(body["tokens"])
    assert body["max_model_len"] == 256
    again = shared.client.post("/detokenize", json={"tokens": body["tokens"]}).json()
    assert again == {"prompt": "hello wö"}
    chat = shared.client.post("/tokenize", json={"messages": [{"role": "user", "content": "a"}]}).json()
    text = shared.client.post("/detokenize", json={"tokens": chat["tokens"]}).json()["prompt"]
    assert text == "<|user|>user: a<|end|><|assistant|>"
    refused(shared.client.post("/tokenize", json={}), 400, None, "prompt")
    refused(send(shared, "/tokenize", {"prompt": "\ud800"}), 400, None, "prompt")
    refused(shared.client.post("/detokenize", json={"tokens": [10**6]}), 400, None, "tokens")
    refused(shared.client.post("/detokenize", json={"model": "x", "tokens": []}), 404, "model_not_found", "model")
