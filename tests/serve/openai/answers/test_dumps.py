"""JSON in steps is the JSON of the whole."""

import json
from typing import Any

import pytest

from twofour.serve.openai.answers import dumps

SCORES = {"token": "a", "logprob": -0.5, "bytes": [97], "top_logprobs": [{"token": "é", "logprob": -1.0, "bytes": []}]}


@pytest.mark.parametrize("tokens", [0, 1, dumps.STEP, 3 * dumps.STEP + 1])
def test_the_same_as_at_once(tokens: int, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = {"index": 0, "logprobs": {"content": [SCORES] * tokens, "refusal": None}}
    text = {
        "text": "a\n",
        "logprobs": {"token_logprobs": [None, -1.5] * tokens, "top_logprobs": [{"a": -1.0}] * tokens},
    }
    document: Any = {"id": "x", "choices": [chat, text, {}], "tokens": (1,) * tokens, "usage": {"n": 1, "m": None}}
    steps, once = list[Any](), dumps.text

    def step(value: object) -> str:
        steps.append(value)
        return once(value)

    monkeypatch.setattr(dumps, "text", step)
    assert dumps.dumps(document) == json.dumps(document, separators=(",", ":"))
    assert max(len(once(value)) for value in steps) <= len(once([SCORES] * dumps.STEP))
