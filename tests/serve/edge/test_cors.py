"""Web pages of other origins."""

from typing import Any

import pytest

from twofour.serve.edge.auth import digest
from twofour.serve.edge.harden import EdgeConfig

FRIEND, FOE = "https://friend.example", "https://foe.example"
ASKS = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization,content-type"}


def leave(answer: Any) -> dict[str, str]:
    return {name: value for name, value in answer.headers.items() if name.startswith("access-control")}


def test_a_named_origin_may_call(launch: Any) -> None:
    server = launch(edge=EdgeConfig(cors_origins=(FRIEND,), api_keys=(digest(b"k"),)))
    asked = server.client.options("/v1/chat/completions", headers={"Origin": FRIEND, **ASKS})
    assert asked.status_code == 204 and asked.headers["x-request-id"]
    assert asked.headers["access-control-allow-origin"] == FRIEND
    assert asked.headers["access-control-allow-headers"] == ASKS["Access-Control-Request-Headers"]
    assert "access-control-allow-credentials" not in asked.headers
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    headers = {"Origin": FRIEND, "Authorization": "Bearer k"}
    answer = server.client.post("/v1/chat/completions", headers=headers, json=body)
    assert answer.status_code == 200
    assert leave(answer)["access-control-allow-origin"] == FRIEND and answer.headers["vary"] == "origin"
    refused = server.client.post("/v1/chat/completions", headers={"Origin": FRIEND}, json=body)
    assert refused.status_code == 401
    assert leave(refused)["access-control-allow-origin"] == FRIEND, "a page must be able to read why"


# What a browser asks before OpenAI's client (6.49, with an organization and a project) streams a chat. Firefox asks for
# user-agent, too; some versions of the client have a timeout and a key of the request.
OPENAI = (
    "authorization,content-type,openai-organization,openai-project,x-stainless-arch,x-stainless-helper-method,"
    "x-stainless-lang,x-stainless-os,x-stainless-package-version,x-stainless-retry-count,x-stainless-runtime,"
    "x-stainless-runtime-version"
)
OLDER = f"{OPENAI},idempotency-key,user-agent,x-stainless-async,x-stainless-timeout"


@pytest.fixture(scope="module")
def friendly(launch_once: Any) -> Any:
    return launch_once(edge=EdgeConfig(cors_origins=(FRIEND,), api_keys=(digest(b"k"),)))


@pytest.mark.parametrize("names", [OPENAI, OLDER, "X-Request-ID , traceparent"])
def test_any_header_of_a_friend(friendly: Any, names: str) -> None:
    asks = {**ASKS, "Origin": FRIEND, "Access-Control-Request-Headers": names}
    asked = friendly.client.options("/v1/chat/completions", headers=asks)
    assert asked.status_code == 204 and asked.headers["access-control-allow-headers"] == names


@pytest.mark.parametrize("names", ["", "a b", "a,,b", "a;b", "a\tb", "*", "a: b", ","])
def test_what_is_no_name_is_not_said_again(friendly: Any, names: str) -> None:
    asks = {**ASKS, "Origin": FRIEND, "Access-Control-Request-Headers": names}
    asked = friendly.client.options("/v1/chat/completions", headers=asks)
    assert "access-control-allow-headers" not in asked.headers


def fail(*arguments: Any) -> None:
    raise ZeroDivisionError


def test_a_page_can_read_every_error(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    server = launch(edge=EdgeConfig(cors_origins=(FRIEND,), api_keys=(digest(b"k"),), max_body_bytes=200))
    page = {"Origin": FRIEND, "Authorization": "Bearer k"}
    fine = {"model": "m", "prompt": "hi"}

    def ask(path: str = "/v1/completions", body: Any = fine, **headers: str) -> Any:
        return server.client.post(path, json=body, headers={**page, **headers})

    answers = [
        ask(Authorization="Bearer wrong"),
        ask(body={**fine, "tools": [1]}),
        ask(path="/nope"),
        server.client.put("/v1/models", headers=page),
        ask(body={**fine, "prompt": "x" * 500}),
    ]
    server.engine.ready = False
    answers.append(ask())
    monkeypatch.setattr("twofour.serve.edge.bodies.replay", fail)  # a bug of the edge's own
    answers.append(ask())
    assert [answer.status_code for answer in answers] == [401, 400, 404, 405, 413, 503, 500]
    for answer in answers:
        assert leave(answer)["access-control-allow-origin"] == FRIEND, answer.status_code
        assert {"x-request-id", "retry-after", "x-should-retry"} <= set(
            leave(answer)["access-control-expose-headers"].split(", ")
        )
        assert answer.json()["error"]["message"]


def test_others_may_not(launch: Any) -> None:
    server = launch(edge=EdgeConfig(cors_origins=(FRIEND,)))
    for origin in (FOE, "null", FRIEND.upper(), f"{FRIEND}.evil"):
        asked = server.client.options("/v1/completions", headers={"Origin": origin, **ASKS})
        assert (asked.status_code, leave(asked)) == (400, {})
        assert leave(server.client.get("/v1/models", headers={"Origin": origin})) == {}


def test_any(launch: Any) -> None:
    server = launch(edge=EdgeConfig(cors_origins=("*",)))
    assert leave(server.client.get("/v1/models", headers={"Origin": FOE}))["access-control-allow-origin"] == "*"
    assert leave(server.client.get("/v1/models")) == {}
