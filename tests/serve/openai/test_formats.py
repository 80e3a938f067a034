"""`response_format`: what reaches the engine, and what is refused before it does."""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import pytest

from twofour.serve.engine.types import Failure

Refused = Callable[..., dict[str, Any]]
TEXT, CHAT = "/v1/completions", "/v1/chat/completions"
ASK: dict[str, dict[str, Any]] = {
    TEXT: {"model": "m", "prompt": "hi"},
    CHAT: {"model": "m", "messages": [{"role": "user", "content": "hi"}]},
}
PATHS = pytest.mark.parametrize("path", [TEXT, CHAT])


def of_schema(schema: Any) -> dict[str, Any]:
    return {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}


def ask(server: Any, path: str, format: Any) -> Any:
    return server.client.post(path, json={**ASK[path], "response_format": format})


def asked(server: Any) -> Any:
    """The schema that the engine was asked to follow."""
    grammar = server.engine.prompts[-1].sampling.grammar
    return None if grammar is None else json.loads(grammar)["grammars"][0]["json_schema"]


@PATHS
def test_what_reaches_the_engine(shared: Any, path: str) -> None:
    for text in (None, {"type": "text"}):
        assert ask(shared, path, text).status_code == 200
        assert asked(shared) is None
    assert ask(shared, path, {"type": "json_object"}).status_code == 200
    assert asked(shared)["type"] == "object"
    assert ask(shared, path, of_schema({"enum": ["red"]})).status_code == 200
    assert asked(shared)["enum"] == ["red"]


def test_clients_cannot_loosen_the_rules(shared: Any) -> None:
    given = {"enum": ["red"], "x-guidance": {"whitespace_pattern": ".*"}}
    assert ask(shared, CHAT, of_schema(given)).status_code == 200
    assert asked(shared)["x-guidance"]["whitespace_pattern"] == " ?"


@pytest.mark.parametrize("schema", [{"type": "array", "items": {"type": "integer"}, "uniqueItems": True}])
def test_clients_cannot_have_half_a_schema_followed(shared: Any, schema: dict[str, Any], refused: Refused) -> None:
    given = {**schema, "x-guidance": {"lenient": True}}
    assert "uniqueItems" in refused(ask(shared, CHAT, of_schema(given)), 400, param="response_format")["message"]


@pytest.mark.parametrize("divisors", [(123_456_789,), (9973, 9967), (12345.67,)])
def test_divisors_that_would_take_gigabytes(shared: Any, divisors: tuple[float, ...], refused: Refused) -> None:
    schema = {"type": "number", "allOf": [{"multipleOf": divisor} for divisor in divisors]}
    assert "multipleOf" in refused(ask(shared, CHAT, of_schema(schema)), 400, param="response_format")["message"]


@pytest.mark.parametrize("divisor", [7, 0.01, 3600, 604_800, 1e9])
def test_divisors_that_people_use(shared: Any, divisor: float) -> None:
    assert ask(shared, CHAT, of_schema({"type": "number", "multipleOf": divisor})).status_code == 200


def optional(count: int) -> dict[str, Any]:
    properties = {f"p{i}": {"type": "string"} for i in range(count)}
    return {"type": "object", "properties": properties, "additionalProperties": False}


BAD = {
    "no type": {},
    "unknown type": {"type": "xml"},
    "a word": "json_object",
    "no schema": {"type": "json_schema"},
    "an empty one": {"type": "json_schema", "json_schema": {}},
    "a schema in words": of_schema("object"),
    "a bad type": of_schema({"type": "zzz"}),
    "nothing but itself": of_schema({"$ref": "#"}),
    "nothing at all": of_schema({"enum": []}),
    "a bad pattern": of_schema({"type": "string", "pattern": "("}),
    "elsewhere": of_schema({"$ref": "http://169.254.169.254/x"}),
    "a file": of_schema({"$ref": "file:///etc/passwd"}),
    "too long": of_schema({"enum": ["x" * 70_000]}),
    "too many": of_schema({"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(3000)}}),
    "too many for one place": of_schema(optional(1700)),
    "too many to count": of_schema({**optional(101), "minProperties": 1}),
    "too many further on": of_schema(
        {"type": "object", "properties": {"a": optional(1700)}, "required": ["a"], "additionalProperties": False}
    ),
}


def test_a_form_of_1500_fields(shared: Any) -> None:
    """More than llguidance takes of itself, which says so at the first brace of the answer only."""
    assert ask(shared, CHAT, of_schema(optional(1500))).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
def test_what_fails_only_with_the_models_tokens(launch: Any, refused: Refused, stream: bool) -> None:
    """Is the request's fault, not the server's."""
    server = launch(launch.engine(fail_after=0, failure=Failure.NOT_FOLLOWED))
    answer = server.chat(stream=stream, response_format={"type": "json_object"})
    assert "secret" not in answer.text
    refused(answer, 400, None, "response_format")


@PATHS
@pytest.mark.parametrize("name", BAD)
def test_refused(shared: Any, refused: Refused, path: str, name: str) -> None:
    error = refused(ask(shared, path, BAD[name]), 400, None, "response_format")
    assert "169.254" not in error["message"] and "passwd" not in error["message"]
    shared.control()


def test_nested_too_deep(shared: Any, refused: Refused) -> None:
    body = "{" + ", ".join(f'"{name}": {json.dumps(value)}' for name, value in ASK[CHAT].items())
    deep = '{"type": "object", "properties": {"a": ' * 2000 + "{}" + "}}" * 2000
    body += f', "response_format": {{"type": "json_schema", "json_schema": {{"schema": {deep}}}}}}}'
    answer = shared.client.post(CHAT, content=body, headers={"Content-Type": "application/json"})
    assert answer.json()["error"]["code"] in (None, "invalid_json")  # where Python itself gives up varies
    assert answer.status_code == 400
    shared.control()


def test_keywords_that_are_not_implemented_are_named(shared: Any, refused: Refused) -> None:
    schema = {"type": "array", "uniqueItems": True, "items": {"const": "SECRET"}}
    message = refused(ask(shared, CHAT, of_schema(schema)), 400, None, "response_format")["message"]
    assert "uniqueItems" in message and "secret" not in message


BOMBS = ["(a+)+$", "((a{1,1000}){1,1000}){1,1000}", "(.*)*x(.*)*y(.*)*z(.*)*[^q]{500}", "^(?:.*a.{200}.*b.{200})$"]


@pytest.mark.parametrize("pattern", BOMBS)
def test_patterns_that_take_others_for_ever(shared: Any, pattern: str) -> None:
    begun_at = time.monotonic()
    answer = ask(shared, CHAT, of_schema({"type": "string", "pattern": pattern}))
    assert answer.status_code in (200, 400)
    assert time.monotonic() - begun_at < 5, "of hours"
    shared.control()


def test_without_the_library(shared: Any, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "llguidance", None)
    answer = ask(shared, CHAT, {"type": "json_object"})
    assert "twofour[json]" in refused(answer, 400, "unsupported_parameter", "response_format")["message"]
    assert ask(shared, CHAT, {"type": "text"}).status_code == 200
