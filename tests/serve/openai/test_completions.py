"""Text completions as a client sees them."""

import json
from collections.abc import Sequence
from typing import Any

import pytest
import sentencepiece_kind
from scripted_engine import ScriptedEngine

from twofour.serve.engine.types import Logprob


def events(text: str) -> list[Any]:
    """The documents of a stream, and the end as the string it is."""
    assert text.endswith("\n\n")
    datas = [block.removeprefix("data: ") for block in text.removesuffix("\n\n").split("\n\n")]
    return [data if data == "[DONE]" else json.loads(data) for data in datas]


def test_whole_answer(shared: Any) -> None:
    answer = shared.complete(max_tokens=100)
    body = answer.json()
    tokens = body["usage"]["completion_tokens"]
    assert answer.status_code == 200
    assert body["id"] == f"cmpl-{answer.headers['x-request-id']}"
    assert body["choices"] == [{"index": 0, "text": shared.reply, "logprobs": None, "finish_reason": "stop"}]
    assert body["usage"] == {
        "prompt_tokens": 2,
        "completion_tokens": tokens,
        "total_tokens": 2 + tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }
    assert set(body) == {"id", "object", "created", "model", "choices", "usage"}


def test_default_length_is_sixteen_tokens(shared: Any) -> None:
    body = shared.complete().json()
    assert body["usage"]["completion_tokens"] == 16
    assert body["choices"][0]["finish_reason"] == "length"


def test_stream_says_the_same_as_the_whole(shared: Any) -> None:
    answer = shared.complete(max_tokens=100, stream=True)
    documents = events(answer.text)
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert answer.headers["cache-control"] == "no-cache"
    assert documents[-1] == "[DONE]"
    chunks = [document["choices"][0] for document in documents[:-1]]
    assert "".join(chunk["text"] for chunk in chunks) == shared.reply
    assert [chunk["finish_reason"] for chunk in chunks] == [None] * (len(chunks) - 1) + ["stop"]
    assert len({(document["id"], document["created"]) for document in documents[:-1]}) == 1
    assert all("usage" not in document for document in documents[:-1])
    assert all(chunk["text"] for chunk in chunks[:-1])
    assert not any("\ufffd" in chunk["text"] for chunk in chunks)


def test_include_usage_adds_one_last_chunk(shared: Any) -> None:
    options = {"include_usage": True}
    documents = events(shared.complete(max_tokens=5, stream=True, stream_options=options).text)
    assert documents[-2]["choices"] == []
    assert documents[-2]["usage"]["completion_tokens"] == 5
    assert all("usage" not in document for document in documents[:-2])


def test_continuous_usage_counts_up(shared: Any) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    documents = events(shared.complete(max_tokens=100, stream=True, stream_options=options).text)[:-1]
    counts = [document["usage"]["completion_tokens"] for document in documents]
    assert counts == sorted(counts)
    assert counts[0] >= 1
    assert counts[-1] == shared.complete(max_tokens=100).json()["usage"]["completion_tokens"]


def test_several_prompts_and_n(shared: Any) -> None:
    before = len(shared.engine.prompts)
    body = shared.complete(prompt=["ab", "abcd"], n=2, seed=7, max_tokens=3).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert body["usage"]["prompt_tokens"] == 6
    assert body["usage"]["completion_tokens"] == 12
    prompts = shared.engine.prompts[before:]
    assert [(len(prompt.tokens), prompt.sampling.seed) for prompt in prompts] == [
        (2, 7),
        (2, 8),
        (4, 7),
        (4, 8),
    ]
    assert len({prompt.id for prompt in prompts}) == 4


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2, 3]]])
def test_token_ids_go_as_they_are(shared: Any, prompt: Any) -> None:
    assert shared.complete(prompt=prompt, max_tokens=1).status_code == 200
    assert shared.engine.prompts[-1].tokens == (1, 2, 3)


def test_sampling_reaches_the_engine(shared: Any) -> None:
    fields = {
        "temperature": 0,
        "top_p": 0.5,
        "top_k": 3,
        "min_p": 0.1,
        "presence_penalty": -2,
        "frequency_penalty": 2,
        "repetition_penalty": 1.1,
        "seed": -5,
        "min_tokens": 2,
        "ignore_eos": True,
        "stop_token_ids": [4],
        "max_tokens": 9,
    }
    assert shared.complete(logit_bias={"5": -100, "6": 1.5}, **fields).status_code == 200
    sampling = shared.engine.prompts[-1].sampling
    assert sampling.logit_bias == {5: -100, 6: 1.5}
    assert sampling.stop_token_ids == (4,)
    fields.pop("stop_token_ids")
    assert {name: getattr(sampling, name) for name in fields} == fields


def test_nulls_mean_defaults(shared: Any) -> None:
    nulls = ("temperature", "top_p", "n", "stop", "seed", "max_tokens", "echo", "logprobs", "stream", "top_k")
    assert shared.complete(**dict.fromkeys(nulls)).status_code == 200
    sampling = shared.engine.prompts[-1].sampling
    assert (sampling.temperature, sampling.top_p, sampling.seed, sampling.max_tokens) == (1.0, 1.0, None, 16)


def test_top_k_minus_one_is_off(shared: Any) -> None:
    assert shared.complete(top_k=-1).status_code == 200
    assert shared.engine.prompts[-1].sampling.top_k == 0


def test_stop_string_across_tokens_cancels_the_sequence(shared: Any) -> None:
    body = shared.complete(max_tokens=100, stop=["rld, "]).json()
    assert body["choices"][0]["text"] == "hello wö"
    assert body["choices"][0]["finish_reason"] == "stop"
    while (how := shared.engine.ended.get(timeout=5)) != "cancelled":
        assert how in ("stop", "length")


def test_stop_string_in_a_stream_never_shows(shared: Any) -> None:
    documents = events(shared.complete(max_tokens=100, stop="wörld", stream=True).text)
    assert "".join(document["choices"][0]["text"] for document in documents[:-1]) == "hello "


def test_echo(shared: Any) -> None:
    assert shared.complete(prompt="ab", echo=True, max_tokens=5).json()["choices"][0]["text"].startswith("abhe")
    documents = events(shared.complete(prompt="ab", echo=True, max_tokens=100, stream=True).text)
    assert "".join(document["choices"][0]["text"] for document in documents[:-1]) == "ab" + shared.reply


def test_echo_of_token_ids_is_the_text_of_their_logprobs(shared: Any) -> None:
    """Special tokens included, so that `text_offset` points into the text."""
    ids = shared.client.post("/tokenize", json={"prompt": "<|end|>a"}).json()["tokens"]
    choice = shared.complete(prompt=ids, echo=True, max_tokens=0, logprobs=0).json()["choices"][0]
    assert choice["text"] == "<|end|>a" == "".join(choice["logprobs"]["tokens"])


def test_no_usage_before_the_end_unless_any_is_asked_for(shared: Any) -> None:
    options = {"include_usage": False, "continuous_usage_stats": True}
    *chunks, _ = events(shared.complete(stream=True, stream_options=options).text)
    assert chunks and not any("usage" in chunk for chunk in chunks)


def test_scoring_a_prompt(shared: Any) -> None:
    """echo, logprobs and no new token: how lm-eval asks for a likelihood."""
    body = shared.complete(prompt="abc", echo=True, logprobs=1, max_tokens=0).json()
    choice = body["choices"][0]
    assert choice["text"] == "abc"
    assert choice["finish_reason"] == "length"
    assert choice["logprobs"] == {
        "text_offset": [0, 1, 2],
        "tokens": ["a", "b", "c"],
        "token_logprobs": [None, -1.5, -1.5],
        "top_logprobs": [None, {"c": -0.25, "b": -1.5}, {"d": -0.25, "c": -1.5}],
    }
    assert body["usage"]["completion_tokens"] == 0


def test_scores_of_prompt_and_answer_join(shared: Any) -> None:
    choice = shared.complete(prompt="ab", echo=True, logprobs=0, max_tokens=2).json()["choices"][0]
    assert choice["logprobs"]["tokens"] == ["a", "b", "hell", "o"]
    assert choice["logprobs"]["text_offset"] == [0, 1, 2, 6]
    assert choice["logprobs"]["token_logprobs"] == [None, -1.5, -1.5, -1.5]


def test_streamed_scores_are_those_of_the_whole(shared: Any) -> None:
    fields = {"prompt": "ab", "echo": True, "logprobs": 2, "max_tokens": 100, "stop": "🤗"}
    whole = shared.complete(**fields).json()["choices"][0]["logprobs"]
    documents = events(shared.complete(**fields, stream=True).text)[:-1]
    parts = [document["choices"][0]["logprobs"] for document in documents]
    assert {key: [item for part in parts for item in part[key]] for key in whole} == whole


def test_infinite_logprobs_are_finite_in_json(shared: Any) -> None:
    top = shared.complete(max_tokens=1, logprobs=3).json()["choices"][0]["logprobs"]["top_logprobs"][0]
    assert min(top.values()) == -9999.0


def test_parts_of_characters_are_told_apart(launch: Any) -> None:
    server = launch(launch.engine(reply="é"))
    choice = server.complete(max_tokens=1, logprobs=2).json()["choices"][0]
    scores = choice["logprobs"]
    assert scores["tokens"] == ["bytes:\\xc3"]
    assert scores["top_logprobs"] == [{"bytes:\\xc4": -0.25, "bytes:\\xc3": -1.5}]
    assert choice["text"] == "", "a character that the limit cuts is not shown"


def pieces_server(launch: Any, reply: Sequence[str]) -> Any:
    """One that answers in a SentencePiece vocabulary."""
    launch.tokenizer = sentencepiece_kind.build_tokenizer()
    ids = launch.tokenizer.convert_tokens_to_ids(list(reply))
    return launch(ScriptedEngine(len(launch.tokenizer), 2, lambda prompt: ids))


def test_spaces_and_offsets_of_pieces(launch: Any) -> None:
    server = pieces_server(launch, ["▁he", "ll", "o", "▁", "<0xC3>", "<0xA9>", "▁w"])
    choice = server.complete(prompt="he w", echo=True, logprobs=0, max_tokens=9).json()["choices"][0]
    text, scores = choice["text"], choice["logprobs"]
    assert text == "he w hello é w"
    assert scores["tokens"] == ["<s>", " he", " w", " he", "ll", "o", " ", "bytes:\\xc3", "bytes:\\xa9", " w", "</s>"]
    assert scores["text_offset"] == [0, 0, 2, 4, 7, 9, 10, 11, 11, 12, 14]


def test_tokens_with_one_text_keep_their_own_values(launch: Any) -> None:
    """The token itself has its text; lm-eval must see that another one is likelier."""
    server = pieces_server(launch, ["h"])
    letter, byte = launch.tokenizer.convert_tokens_to_ids(["h", "<0x68>"])
    top = ((byte, -0.1), (letter, -3.0))
    server.engine.scores = lambda token: Logprob(token, -3.0 if token == letter else -0.1, top)
    scores = server.complete(max_tokens=1, logprobs=2).json()["choices"][0]["logprobs"]
    assert scores["tokens"] == ["h"]
    assert scores["top_logprobs"] == [{f"token_id:{byte}": -0.1, "h": -3.0}]


def test_prompt_that_fills_the_context_can_be_scored(shared: Any) -> None:
    ids = [1] * 256
    assert shared.complete(prompt=ids, echo=True, max_tokens=0, logprobs=0).status_code == 200
    refused = shared.complete(prompt=ids, max_tokens=1)
    assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
