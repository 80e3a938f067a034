"""Web pages of other origins."""

from typing import Any

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
    assert {"authorization", "content-type"} <= set(asked.headers["access-control-allow-headers"].split(", "))
    assert "access-control-allow-credentials" not in asked.headers
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    headers = {"Origin": FRIEND, "Authorization": "Bearer k"}
    answer = server.client.post("/v1/chat/completions", headers=headers, json=body)
    assert answer.status_code == 200
    assert leave(answer)["access-control-allow-origin"] == FRIEND and answer.headers["vary"] == "origin"
    refused = server.client.post("/v1/chat/completions", headers={"Origin": FRIEND}, json=body)
    assert refused.status_code == 401
    assert leave(refused)["access-control-allow-origin"] == FRIEND, "a page must be able to read why"


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
