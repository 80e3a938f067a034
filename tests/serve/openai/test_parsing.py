"""Request bodies: what one may hold, and how it becomes a request."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from twofour.serve.edge.errors import RequestError
from twofour.serve.openai.parsing import MAX_SIGNS, MAX_WIDE_BYTES, parse, parse_json
from twofour.serve.openai.protocol import MAX_PARTS, ChatRequest, CompletionRequest, DetokenizeRequest, Strict

USER = {"role": "user"}


def refusal(raw: str, model: type[Strict] = CompletionRequest) -> RequestError:
    with pytest.raises(RequestError) as refused:
        parse(raw.encode(), model)
    return refused.value


def test_what_becomes_many_values_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = ",".join("1" for _ in range(MAX_SIGNS - 4))
    body = f'{{"model":"m","prompt":[{ids}]}}'
    assert len(parse(body.encode(), CompletionRequest).prompt) == MAX_SIGNS - 4
    monkeypatch.setattr("twofour.serve.openai.parsing.from_json", None)
    for more in (f'{{"model":"m","prompt":[{ids},1]}}', "[" * (MAX_SIGNS + 1), '{"":' * (MAX_SIGNS // 2 + 1)):
        assert refusal(more).status == 413


def test_a_text_that_becomes_four_times_its_bytes_is_not_parsed() -> None:
    letters = "x" * MAX_WIDE_BYTES
    for wide in ("\U0001f600", "\\ud83d\\ude00"):
        assert refusal(f'{{"model": "m", "prompt": "{letters}{wide}"}}').status == 413
    parse(f'{{"model": "m", "prompt": "{letters}"}}'.encode(), CompletionRequest)


def test_numbers_are_of_one_kind() -> None:
    document = {"a": [4.0, 4.5, 1e300, True, "4.0", [{"b": 2.0}]], "c": -1.0}
    found = parse_json(json.dumps(document).encode())
    assert repr(found) == repr({"a": [4, 4.5, 1e300, True, "4.0", [{"b": 2}]], "c": -1})


MANY = 10_000


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (ChatRequest, {"messages": [{**USER, "content": [1] * MANY}]}),
        (ChatRequest, {"messages": [1] * MANY}),
        (ChatRequest, {"messages": [{**USER, "content": "a"}], "stop": [1] * MANY}),
        (CompletionRequest, {"prompt": "a", "stop_token_ids": ["a"] * MANY}),
        (CompletionRequest, {"prompt": "a", "logit_bias": {str(token): "x" for token in range(MANY)}}),
        (DetokenizeRequest, {"tokens": ["a"] * MANY}),
    ],
)
def test_validation_stops_at_the_first_error(model: type[Strict], fields: dict[str, Any]) -> None:
    with pytest.raises(ValidationError) as error:
        model.model_validate({"model": "m", **fields})
    assert error.value.error_count() <= 2  # one of each kind that the field may have


def test_parts_are_counted_together() -> None:
    def chat(parts: int) -> str:
        message = {**USER, "content": [{"type": "text", "text": ""}] * (parts // 2)}
        return json.dumps({"model": "m", "messages": [message] * 2})

    parse(chat(MAX_PARTS).encode(), ChatRequest)
    assert "parts" in str(refusal(chat(MAX_PARTS + 2), ChatRequest))


def test_what_nobody_looks_at_is_not_kept() -> None:
    body = parse(b'{"model": "m", "prompt": "a", "metadata": [{}, {}]}', CompletionRequest)
    assert body.metadata is None
