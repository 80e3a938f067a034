"""Inputs that must not pass: each refused in the one shape.

After every one of them the server is well and says what it always says.
"""

import json
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

Refused = Callable[..., dict[str, Any]]
CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
DEEP = "[" * 100_000 + "]" * 100_000


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
        {str(token): 1 for token in range(250)} | {f"0{token}": 1 for token in range(750)},
        {" 1": 1},
        {"²": 1},
    ],
    "stop": [["a"] * 5, "x" * 1_000_000, "", ["a", ""], [1], 1, "x" * 1025],
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
               [1.5], [True], [None], {"a": 1}, ["a"] * 129, ["a"] * 2000, [[["a"]]]],
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
        *([{"role": "user", "content": content}] for content in (5, [5], [{"type": "text"}])),
        [{"role": "tool", "content": "5"}],
    ],
}


@pytest.fixture(autouse=True)
def unharmed(shared: Any) -> Iterator[None]:
    yield
    shared.control()


def cases(fields: dict[str, list[Any]]) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}-{str(value)[:20].encode('ascii', 'replace').decode()}")
        for name, values in fields.items()
        for value in values
    ]


def send(server: Any, path: str, body: dict[str, Any]) -> Any:
    # httpx writes lone surrogates and infinities otherwise; this is what a careless client sends.
    return server.client.post(path, content=json.dumps(body), headers={"Content-Type": "application/json"})


def said(path: str, text: str) -> dict[str, Any]:
    return {"prompt": text} if path == TEXT else {"messages": [{"role": "user", "content": text}]}


@pytest.mark.parametrize(("name", "value"), cases(BAD_TEXT_FIELDS))
def test_bad_fields_of_completions(shared: Any, refused: Refused, name: str, value: Any) -> None:
    answer = send(shared, TEXT, {"model": "m", "prompt": "hi", name: value})
    too_long = name == "max_tokens" and value == 10**9
    code, param = ("context_length_exceeded", "prompt") if too_long else (None, name)
    refused(answer, 400, code, param)


@pytest.mark.parametrize(("name", "value"), cases(BAD_CHAT_FIELDS))
def test_bad_fields_of_chat(shared: Any, refused: Refused, name: str, value: Any) -> None:
    messages = [{"role": "user", "content": "hi"}]
    answer = send(shared, CHAT, {"model": "m", "messages": messages, name: value})
    refused(answer, 400, None, name)


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
def test_bodies_that_are_no_request(shared: Any, refused: Refused, path: str, body: Any, code: str | None) -> None:
    answer = shared.client.post(path, content=body, headers={"Content-Type": "application/json"})
    refused(answer, 400, code)


def test_numbers_too_large_for_a_float(shared: Any, refused: Refused) -> None:
    body = '{"model": "m", "prompt": "hi", "temperature": 1e999}'
    refused(
        shared.client.post(TEXT, content=body, headers={"Content-Type": "application/json"}),
        400,
        None,
        "temperature",
    )


@pytest.mark.parametrize("model", [5, None, True, ""])
def test_model_must_be_named(shared: Any, refused: Refused, model: Any) -> None:
    answer = shared.complete(model=model)
    if model == "":
        refused(answer, 404, "model_not_found", "model")
    else:
        refused(answer, 400, None, "model")


def test_missing_fields(shared: Any, refused: Refused) -> None:
    refused(shared.client.post(TEXT, json={"prompt": "hi"}), 400, None, "model")
    refused(shared.client.post(TEXT, json={"model": "m"}), 400, None, "prompt")
    refused(shared.client.post(CHAT, json={"model": "m"}), 400, None, "messages")


@pytest.mark.parametrize("path", [TEXT, CHAT])
def test_half_a_character_anywhere(shared: Any, refused: Refused, path: str) -> None:
    """JSON can spell it, and no text has it."""
    for body in (
        {"prompt": "\ud800"},
        {"prompt": ["hi\udc00"]},
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "\ud800"}]}]},
        {"stop": "\ud800"},
        {"model": "\ud800"},
        {"user": "\ud800"},
        {"\ud800": 1},
        {"logit_bias": {"\ud800": 1}},
    ):
        answer = send(shared, path, {"model": "m", **said(path, "hi"), **body})
        assert "unicode" in refused(answer, 400, "invalid_json")["message"]


@pytest.mark.parametrize("scheme", ["http", "file"])
def test_images_are_refused_and_never_fetched(shared: Any, refused: Refused, scheme: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0.1)
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}/a.png"
        part = {"type": "image_url", "image_url": {"url": url}}
        answer = shared.chat({"role": "user", "content": [{"type": "text", "text": "hi"}, part]})
        refused(answer, 400, "unsupported_parameter", "messages")
        with pytest.raises(TimeoutError):
            listener.accept()


def test_messages_say_the_field_and_never_the_value(shared: Any, refused: Refused) -> None:
    answer = shared.chat({"role": "user", "content": "a"}, {"role": "SECRET", "content": "a"})
    assert refused(answer, 400, None, "messages")["message"].startswith("messages[1]: ")
    for fields in ({"logit_bias": {"SECRET": "x"}}, {"stop": {"SECRET": 1}}, {"max_tokens": "SECRET"}):
        assert "SECRET" not in shared.complete(**fields).text
    assert "SECRET" not in answer.text


def test_odd_inputs_that_are_fine(shared: Any) -> None:
    assert shared.complete(prompt="a\0b").status_code == 200
    assert shared.complete(prompt="<|user|>").status_code == 200
    twice = '{"model": "x", "model": "m", "prompt": "hi"}'
    answer = shared.client.post(TEXT, content=twice, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    assert shared.complete(top_k=-1, max_tokens=None, stop=None, n=None, logprobs=None).status_code == 200
    assert shared.complete(logit_bias={}).status_code == 200


def test_several_greedy_choices_are_the_same(shared: Any) -> None:
    both = shared.complete(n=2, temperature=0).json()["choices"]
    assert both[0]["text"] == both[1]["text"]


def test_whole_numbers_may_have_a_point(shared: Any) -> None:
    """JSON has one kind of number, and some languages write 4 as 4.0."""
    body = '{"model": "m", "prompt": [104.0, 1e2], "max_tokens": 4.0, "length_penalty": 1.0, "temperature": 1}'
    answer = shared.client.post(TEXT, content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["usage"] == {**answer.json()["usage"], "prompt_tokens": 2, "completion_tokens": 4}
    assert shared.engine.prompts[-1].tokens == (104, 100)
