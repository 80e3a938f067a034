"""Chat completions as a client sees them."""

import copy
import json
from typing import Any

from tokenizers.processors import TemplateProcessing


def events(text: str) -> list[Any]:
    return [json.loads(line[6:]) for line in text.split("\n\n") if line and line != "data: [DONE]"]


def test_whole_answer(shared: Any) -> None:
    answer = shared.chat()
    body = answer.json()
    assert body["id"] == f"chatcmpl-{answer.headers['x-request-id']}"
    assert body["object"] == "chat.completion"
    assert body["choices"] == [
        {
            "index": 0,
            "message": {"role": "assistant", "content": shared.reply, "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        }
    ]
    assert set(body) == {"id", "object", "created", "model", "choices", "usage"}


def test_the_template_makes_the_prompt(shared: Any, byte_tokenizer: Any) -> None:
    messages = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
    ]
    answer = shared.chat(*messages)
    tokens = shared.engine.prompts[-1].tokens
    expected = "<|user|>system: be brief<|end|><|user|>user: a\nb<|end|><|assistant|>"
    assert byte_tokenizer.decode(tokens) == expected
    assert answer.json()["usage"]["prompt_tokens"] == len(tokens)


def test_the_template_has_the_only_start_token(launch: Any, byte_tokenizer: Any) -> None:
    start = byte_tokenizer.convert_tokens_to_ids("<|user|>")
    launch.tokenizer = copy.deepcopy(byte_tokenizer)
    launch.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<|user|> $A", special_tokens=[("<|user|>", start)]
    )
    server = launch()
    server.complete(prompt="ab")
    assert server.engine.prompts[-1].tokens[0] == start
    server.chat()
    assert server.engine.prompts[-1].tokens.count(start) == 1


def test_default_length_is_the_rest_of_the_context(shared: Any) -> None:
    shared.chat()
    prompt = shared.engine.prompts[-1]
    assert len(prompt.tokens) + prompt.sampling.max_tokens == 256


def test_max_completion_tokens_goes_before_max_tokens(shared: Any) -> None:
    assert shared.chat(max_tokens=9, max_completion_tokens=3).json()["usage"]["completion_tokens"] == 3


def test_stream_opens_with_the_role_and_ends_with_an_empty_delta(shared: Any) -> None:
    choices = [document["choices"][0] for document in events(shared.chat(stream=True).text)]
    assert choices[0]["delta"] == {"role": "assistant", "content": ""}
    assert choices[-1] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert all(set(choice["delta"]) == {"content"} and choice["delta"]["content"] for choice in choices[1:-1])
    assert all(choice["finish_reason"] is None and "logprobs" in choice for choice in choices[:-1])
    assert "".join(choice["delta"].get("content", "") for choice in choices) == shared.reply


def test_every_choice_of_a_stream_has_its_role_and_its_end(shared: Any) -> None:
    choices = [document["choices"][0] for document in events(shared.chat(stream=True, n=3).text)]
    for index in range(3):
        own = [choice for choice in choices if choice["index"] == index]
        assert own[0]["delta"].get("role") == "assistant"
        assert [choice["finish_reason"] for choice in own].count("stop") == 1
        assert "".join(choice["delta"].get("content", "") for choice in own) == shared.reply


def test_logprobs(shared: Any) -> None:
    body = shared.chat(max_tokens=1, logprobs=True, top_logprobs=2).json()
    assert body["choices"][0]["logprobs"] == {
        "content": [
            {
                "token": "hell",
                "logprob": -1.5,
                "bytes": list(b"hell"),
                "top_logprobs": [
                    {"token": "%", "logprob": -0.25, "bytes": list(b"%")},
                    {"token": "hell", "logprob": -1.5, "bytes": list(b"hell")},
                ],
            }
        ],
        "refusal": None,
    }


def test_the_bytes_of_the_tokens_are_those_of_the_text(shared: Any) -> None:
    """Of whole characters and of their parts; the token that ends the text has none in it."""
    scores = shared.chat(logprobs=True).json()["choices"][0]["logprobs"]["content"]
    assert b"".join(bytes(score["bytes"]) for score in scores) == shared.reply.encode()
    assert [score["token"] for score in scores if not score["token"].isascii()] == []
    assert "\\xf0" in [score["token"] for score in scores]
    assert (scores[-1]["token"], scores[-1]["bytes"]) == ("<|end|>", [])


def test_streamed_logprobs_cover_every_token(shared: Any) -> None:
    documents = events(shared.chat(stream=True, logprobs=True, stream_options={"include_usage": True}).text)
    parts = [choice["logprobs"] for document in documents for choice in document["choices"]]
    scored = sum(len(part["content"]) for part in parts if part is not None)
    assert scored == documents[-1]["usage"]["completion_tokens"]


def test_messages_that_the_template_refuses(shared: Any) -> None:
    answer = shared.chat({"role": "user", "content": "refuse me"})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == "messages"


def test_no_template_points_to_completions(launch: Any, byte_tokenizer: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr(byte_tokenizer, "chat_template", None)
    server = launch()
    answer = server.chat()
    assert answer.status_code == 400
    assert "/v1/completions" in answer.json()["error"]["message"]
    assert server.complete().status_code == 200
