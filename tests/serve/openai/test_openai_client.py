"""The official client, as people use it."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import openai
import pytest
from openai import AsyncOpenAI, OpenAI

from twofour.serve.edge.auth import digest
from twofour.serve.edge.harden import EdgeConfig

ASK: Any = [{"role": "user", "content": "hi"}]


@pytest.fixture
def client(shared: Any) -> Any:
    with OpenAI(base_url=f"{shared.url}/v1", api_key="none", max_retries=0) as client:
        yield client


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["m"]
    assert client.models.retrieve("m").id == "m"
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")


def test_completion(client: OpenAI, shared: Any) -> None:
    answer = client.completions.create(model="m", prompt="hi", max_tokens=100, logprobs=1)
    assert answer.choices[0].text == shared.reply
    assert answer.choices[0].finish_reason == "stop"
    assert answer.choices[0].logprobs is not None
    assert answer.usage is not None
    assert answer.usage.completion_tokens == len(answer.choices[0].logprobs.tokens or [])


def test_completion_stream(client: OpenAI, shared: Any) -> None:
    chunks = list(client.completions.create(model="m", prompt="hi", max_tokens=100, stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == shared.reply


def test_chat(client: OpenAI, shared: Any) -> None:
    answer = client.chat.completions.create(model="m", messages=ASK, logprobs=True, top_logprobs=2)
    assert answer.choices[0].message.content == shared.reply
    assert answer.choices[0].logprobs is not None
    scores = answer.choices[0].logprobs.content or []
    assert [len(score.top_logprobs) for score in scores] == [2] * len(scores)
    assert answer._request_id is not None
    assert answer.id == f"chatcmpl-{answer._request_id}"


def test_chat_stream_with_usage(client: OpenAI, shared: Any) -> None:
    stream = client.chat.completions.create(
        model="m", messages=ASK, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == shared.reply
    assert chunks[-1].usage is not None
    assert chunks[-1].choices == []


def test_errors_carry_their_fields(client: OpenAI) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="m", prompt="x" * 300)
    assert caught.value.code == "context_length_exceeded"
    assert "prompt is too long" in str(caught.value)
    assert caught.value.request_id is not None
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="m", messages=ASK, temperature=3)
    assert (caught.value.param, caught.value.type) == ("temperature", "invalid_request_error")


def test_a_wrong_key(launch: Any) -> None:
    server = launch(edge=EdgeConfig(api_keys=(digest(b"right"),)))
    with OpenAI(base_url=f"{server.url}/v1", api_key="right", max_retries=0) as client:
        assert client.models.retrieve("m").id == "m"
    with (
        OpenAI(base_url=f"{server.url}/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as caught,
    ):
        client.models.list()
    assert caught.value.code == "invalid_api_key"


def test_an_error_within_a_stream_is_raised(launch: Any) -> None:
    server = launch(launch.engine(fail_after=3))
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        stream = client.completions.create(model="m", prompt="hi", stream=True)
        with pytest.raises(openai.APIError, match="internal error"):
            list(stream)


def test_leaving_a_stream_early_frees_its_place(launch: Any) -> None:
    server = launch(launch.engine(hold_after=3))
    with OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        stream = client.chat.completions.create(model="m", messages=ASK, stream=True)
        next(iter(stream))
        stream.close()
    assert server.engine.ended.get(timeout=5) == "cancelled"


def noting(answered: list[int], then: Callable[[], None] = lambda: None) -> httpx.Client:
    """An HTTP client that notes the status of each answer and does something after it."""

    def note(answer: httpx.Response) -> None:
        answered.append(answer.status_code)
        then()

    return httpx.Client(event_hooks={"response": [note]}, trust_env=False)


def test_a_request_is_repeated_when_the_server_was_not_ready(launch: Any) -> None:
    server = launch()
    server.engine.ready = False
    answered: list[int] = []

    def recover() -> None:
        server.engine.ready = True

    with (
        noting(answered, recover) as http,
        OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=http) as client,
    ):
        answer = client.completions.create(model="m", prompt="hi", max_tokens=100)
    assert answer.choices[0].text == server.reply
    assert answered == [503, 200]


def test_a_request_past_its_deadline_is_not_repeated(launch: Any) -> None:
    server = launch(launch.engine(hold_after=0), deadline_s=0.05)
    answered: list[int] = []
    with (
        noting(answered) as http,
        OpenAI(base_url=f"{server.url}/v1", api_key="none", http_client=http) as client,
        pytest.raises(openai.InternalServerError) as caught,
    ):
        client.completions.create(model="m", prompt="hi")
    assert (caught.value.status_code, answered) == (504, [504])


def test_a_client_that_waits_no_longer_frees_its_place(launch: Any) -> None:
    server = launch(launch.engine(hold_after=0))
    with (
        OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=0.2, max_retries=0) as client,
        pytest.raises(openai.APITimeoutError),
    ):
        client.completions.create(model="m", prompt="hi")
    assert server.engine.ended.get(timeout=5) == "cancelled"


async def chat_in_pieces(client: AsyncOpenAI) -> str:
    stream = await client.chat.completions.create(model="m", messages=ASK, stream=True)
    return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])


def test_many_at_once_with_the_async_client(shared: Any) -> None:
    async def ask() -> list[str]:
        async with AsyncOpenAI(base_url=f"{shared.url}/v1", api_key="none", max_retries=0) as client:
            return await asyncio.gather(*(chat_in_pieces(client) for _ in range(20)))

    assert asyncio.run(ask()) == [shared.reply] * 20
