"""No name in a request is ignored in silence, and docs/parameters.md says what becomes of each."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from twofour.serve.openai.parameters import (
    IGNORED,
    IGNORED_IN_MESSAGES,
    IGNORED_IN_PARTS,
    INNER,
    NEUTRAL,
    PART,
    same,
)
from twofour.serve.openai.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    JsonSchema,
    Message,
    ResponseFormat,
    StreamOptions,
    Strict,
    TokenizeRequest,
)

Refused = Callable[..., dict[str, Any]]
CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
PATHS = pytest.mark.parametrize("path", [TEXT, CHAT])
HI = {"role": "user", "content": "hi"}
DOCS = Path(__file__).parents[3] / "docs" / "parameters.md"
FORMAT = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"enum": ["red"]}}}


def send(server: Any, path: str, **fields: Any) -> Any:
    said = {"prompt": "hi"} if path == TEXT else {"messages": [HI]}
    return server.client.post(path, json={"model": "m", **said, **fields})


UNSUPPORTED = {
    "suffix": "x",
    "best_of": 3,
    "prompt_logprobs": -1,
    "tools": [{"type": "function"}],
    "tool_choice": "auto",
    "functions": [{"name": "f"}],
    "guided_regex": "(a+)+$",
    "guided_choice": [],
    "guided_json": {"$ref": "#"},
    "guided_decoding_backend": "outlines",
    "structured_outputs": {"regex": "("},
    "prompt_embeds": "gASVAA==",
    "use_beam_search": True,
    "truncate_prompt_tokens": 5,
    "truncation_side": "left",
    "chat_template": "{{ 1 }}",
    "chat_template_kwargs": {"tokenize": True},
    "audio": {"voice": "alloy"},
    "web_search_options": {},
    "include_reasoning": False,
    "detokenize": False,
    "request_id": "mine",
}


@pytest.mark.parametrize(("name", "value"), UNSUPPORTED.items())
@PATHS
def test_known_and_unsupported(shared: Any, refused: Refused, path: str, name: str, value: Any) -> None:
    refused(send(shared, path, **{name: value}), 400, "unsupported_parameter", name)


FOREIGN = (
    "grammar",
    "regex",
    "lora_path",
    "min_new_tokens",
    "max_new_tokens",
    "mirostat",
    "typical_p",
    "thinking",
    "tempo",
)


@pytest.mark.parametrize("name", FOREIGN)
@PATHS
def test_names_that_nobody_here_knows(shared: Any, refused: Refused, path: str, name: str) -> None:
    message = refused(send(shared, path, **{name: "SECRET"}), 400, "unknown_parameter", name)["message"]
    assert name in message and "SECRET" not in message


INSIDE: dict[str, tuple[dict[str, Any], str, str]] = {
    "a name": ({"messages": [HI, {**HI, "name": "Ann"}]}, "messages[1].name", "unsupported_parameter"),
    "calls": (
        {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{"id": "1"}]}, HI]},
        "messages[0].tool_calls",
        "unsupported_parameter",
    ),
    "a message's own": ({"messages": [{**HI, "prefix": True}]}, "messages[0].prefix", "unknown_parameter"),
    "a part's own": (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "x": 1}]}]},
        "messages[0].content[0].x",
        "unknown_parameter",
    ),
    "stream options": (
        {"stream": True, "stream_options": {"include_usage": True, "every": 2}},
        "stream_options.every",
        "unknown_parameter",
    ),
    "obfuscation": (
        {"stream": True, "stream_options": {"include_obfuscation": True}},
        "stream_options.include_obfuscation",
        "unsupported_parameter",
    ),
    "a format's own": (
        {"response_format": {"type": "json_object", "schema": {"enum": ["red"]}}},
        "response_format.schema",
        "unknown_parameter",
    ),
    "a schema's own": (
        {"response_format": {**FORMAT, "json_schema": {**FORMAT["json_schema"], "backend": "x"}}},  # type: ignore[dict-item]
        "response_format.json_schema.backend",
        "unknown_parameter",
    ),
}


@pytest.mark.parametrize("name", INSIDE)
def test_inside_a_body(shared: Any, refused: Refused, name: str) -> None:
    fields, place, code = INSIDE[name]
    assert place in refused(send(shared, CHAT, **fields), 400, code, place)["message"]


def test_a_name_is_repeated_up_to_a_length(shared: Any, refused: Refused) -> None:
    refused(send(shared, TEXT, **{"x" * 10_000: 1}), 400, "unknown_parameter", "x" * 100)


@pytest.mark.parametrize("path", ["/tokenize", "/detokenize"])
def test_the_tokenizer_refuses_too(shared: Any, refused: Refused, path: str) -> None:
    said: dict[str, Any] = {"prompt": "hi"} if path == "/tokenize" else {"tokens": [1]}
    assert shared.client.post(path, json={**said, "user": "me", "tools": []}).status_code == 200
    answer = shared.client.post(path, json={**said, "temperature": 1})
    refused(answer, 400, "unknown_parameter", "temperature")


def test_a_text_has_no_turns_to_open(shared: Any, refused: Refused) -> None:
    for name in ("add_generation_prompt", "continue_final_message"):
        answer = shared.client.post("/tokenize", json={"prompt": "hi", name: True})
        refused(answer, 400, None, name)


def test_a_schema_without_its_type(shared: Any, refused: Refused) -> None:
    answer = send(shared, CHAT, response_format={**FORMAT, "type": "text"})
    refused(answer, 400, None, "response_format")


@pytest.mark.parametrize(("name", "value"), [("min_tokens", 3), ("ignore_eos", True)])
@PATHS
def test_what_a_grammar_cannot_keep(shared: Any, refused: Refused, path: str, name: str, value: Any) -> None:
    """Where the grammar ends, the text does."""
    fields = {"max_tokens": 9, name: value}
    answer = send(shared, path, **fields, response_format={"type": "json_object"})
    refused(answer, 400, "unsupported_parameter", name)
    for format in (None, {"type": "text"}):
        assert send(shared, path, **fields, response_format=format).status_code == 200


def test_true_is_no_neutral_one(shared: Any, refused: Refused) -> None:
    refused(shared.complete(best_of=True), 400, "unsupported_parameter", "best_of")
    refused(shared.complete(store=0), 400, "unsupported_parameter", "store")


@PATHS
def test_what_changes_nothing_passes(shared: Any, path: str) -> None:
    model = CompletionRequest if path == TEXT else ChatRequest
    own = set(model.model_fields)
    assert send(shared, path, **dict.fromkeys(NEUTRAL.keys() - own)).status_code == 200
    neutral = {name: values[0] for name, values in NEUTRAL.items() if values and name not in own}
    assert send(shared, path, **neutral, user="me", metadata={"a": "b"}, something=None).status_code == 200


def test_what_clients_send_back_of_an_answer_passes(shared: Any) -> None:
    """Messages as OpenAI's client, litellm and lm-eval write them."""
    said = {"role": "assistant", "content": "hello", "refusal": None, "annotations": [], "audio": None}
    said |= {"tool_calls": None, "function_call": None, "provider_specific_fields": {"refusal": None}}
    asked = {"role": "user", "type": "text", "content": [{"type": "text", "text": "hi", "cache_control": {"a": 1}}]}
    assert shared.chat(HI, said, asked).status_code == 200


def tables() -> list[list[list[str]]]:
    """The rows of the tables in the documentation, without their heads and last columns."""
    found = re.findall(r"(?:^\|.*\n)+", DOCS.read_text(), re.MULTILINE)
    rows = [[line.strip("|\n ").split(" | ") for line in table.splitlines()[2:]] for table in found]
    return [[[cell.strip() for cell in row[:3]] for row in table] for table in rows]


def refusal(values: tuple[object, ...]) -> str:
    return "refused" + (", but for " if values else "") + ", ".join(f"`{json.dumps(value)}`" for value in values)


def here(name: str, model: type[Strict]) -> str:
    if name in IGNORED:
        return "ignored"
    return "served" if name in model.model_fields else refusal(NEUTRAL.get(name, ()))


def columns(one: type[Strict], other: type[Strict], more: Mapping[str, Any] | None = None) -> list[list[str]]:
    names = {**one.model_fields, **other.model_fields, **(more or {})}
    return sorted([f"`{name}`", here(name, one), here(name, other)] for name in names)


PLACES = {
    "messages[]": Message,
    "stream_options": StreamOptions,
    "response_format": ResponseFormat,
    "json_schema": JsonSchema,
}
LABELS = ("name", "description", "strict")  # of a json_schema: they are read, and have no effect


def inside() -> list[list[str]]:
    rows = [["messages[].content[]", name, "served"] for name in PART]
    rows += [["messages[].content[]", name, "ignored"] for name in IGNORED_IN_PARTS]
    rows += [["messages[]", name, "ignored"] for name in IGNORED_IN_MESSAGES]
    for place, model in PLACES.items():
        for name in [field.alias or name for name, field in model.model_fields.items()]:
            rows.append([place, name, "ignored" if model is JsonSchema and name in LABELS else "served"])
        rows += [[place, name, refusal(values)] for name, values in INNER[model].items()]
    return sorted([f"`{place}`", f"`{name}`", what] for place, name, what in rows)


def test_the_documentation_says_what_the_code_does() -> None:
    bodies, parts, tokenizer = map(sorted, tables())
    assert bodies == columns(CompletionRequest, ChatRequest, NEUTRAL)
    assert parts == inside()
    assert tokenizer == columns(TokenizeRequest, DetokenizeRequest)


def test_neutral_values_are_no_fields_of_all_bodies() -> None:
    """A name of the table that every endpoint serves would be dead there."""
    everywhere = CompletionRequest.model_fields.keys() & ChatRequest.model_fields.keys()
    assert not everywhere & NEUTRAL.keys()
    assert same(1, 1.0) and not same(True, 1)
