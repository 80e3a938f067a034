"""Whose cached prefixes a request may find, on the paths of vLLM that the edge does not know."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import pytest

from twofour.serve.edge.auth import digest
from twofour.serve.edge.errors import RequestError
from twofour.serve.vllm_edge import requests, settings
from twofour.serve.vllm_edge.settings import Settings
from twofour.serve.vllm_edge.shared import shared

OTHERS = ["/v1/messages", "/v1/responses", "/v1/chat/completions/batch", "/inference/v1/generate", "/invocations"]


@pytest.fixture(autouse=True)
def two_keys(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    told = Settings("m", digests=(digest(b"first").hex(), digest(b"second").hex()))
    monkeypatch.setenv(settings.VARIABLE, told.as_variable())
    shared.cache_clear()
    yield
    shared.cache_clear()


def heard(path: str, key: int | None, body: bytes) -> bytes:
    """What vLLM hears of a body."""
    found: list[bytes] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found.append((await receive())["body"])

    async def receive() -> Any:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        raise AssertionError(message)

    state = {} if key is None else {"key": key}
    scope = {"type": "http", "method": "POST", "path": path, "state": state, "headers": []}
    asyncio.run(requests.Requests(app)(scope, receive, send))
    return found[0]


@pytest.mark.parametrize("path", OTHERS)
def test_every_path_has_the_salt_of_its_key(path: str) -> None:
    def salt(key: int, **fields: Any) -> Any:
        return json.loads(heard(path, key, json.dumps({"input": "hi", **fields}).encode() + b" \n"))["cache_salt"]

    salts = {salt(key, **fields) for key in (0, 1) for fields in ({}, {"cache_salt": "a/b"}, {"cache_salt": "1 "})}
    assert len(salts) == 6
    assert salt(0) == salt(0) and salt(0, cache_salt="a") == salt(0, cache_salt="a")
    assert salt(1) != salt(0, cache_salt=salt(1)), "a salt that was seen opens nothing"
    assert all(len(each) <= 128 and not set(each) & set("@/\\\0") for each in salts), "vLLM refuses others"


def test_what_is_left_as_it_is() -> None:
    body = b'{"input": "hi"}'
    assert heard("/v1/messages", None, body) == body
    for body in (b"", b" ", b"{}", b"[1]", b"null", b'{"cache_salt": 5}'):
        assert heard("/pause", 0, body) == body


def test_what_is_no_json_is_refused() -> None:
    with pytest.raises(RequestError, match="not valid JSON"):
        asyncio.run(requests.passed_on(b'{"a": NaN}', {"path": "/v1/messages", "state": {"key": 0}}))
