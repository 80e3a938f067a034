"""vLLM's errors in our form, and answers that end. What stands behind the edge here says what vLLM has been seen to."""

import asyncio
import json
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from twofour.serve.edge.lifecycle import Lifecycle
from twofour.serve.vllm_edge.endings import Endings
from twofour.serve.vllm_edge.failures import Failures, translated

SCOPE = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": [], "query_string": b""}
PYDANTIC = (
    "1 validation error:\n  {'type': 'int_parsing', 'loc': 'body.n', 'msg': 'Input should be 1', 'input': 'SECRET'}"
)


def scope(**changes: Any) -> dict[str, Any]:
    return {**SCOPE, "state": {"request_id": "abc"}, "app": Starlette(), **changes}


def vllm(message: str, code: int, type: str = "BadRequestError", param: str | None = None) -> bytes:
    return json.dumps({"error": {"message": message, "type": type, "code": code, "param": param}}).encode()


CASES: list[tuple[int, bytes, int, str, str | None, str | None]] = [
    (400, vllm(PYDANTIC, 400, param="body.n"), 400, "invalid_request_error", None, "n"),
    (422, b'{"detail": [{"loc": ["body", "x"]}]}', 400, "invalid_request_error", None, None),
    (401, b'{"error": "Unauthorized"}', 401, "invalid_request_error", "invalid_api_key", None),
    (
        *(403, vllm("Scale-out endpoints are off", 403, "PermissionDeniedError")),
        *(403, "invalid_request_error", None, None),
    ),
    (
        *(404, vllm("The model `x` does not exist.", 404, param="model")),
        *(404, "invalid_request_error", "model_not_found", "model"),
    ),
    (404, b'{"detail": "Not Found"}', 404, "invalid_request_error", None, None),
    (405, b'{"detail": "Method Not Allowed"}', 405, "invalid_request_error", None, None),
    (500, vllm("/usr/lib/SECRET.py failed", 500), 500, "server_error", None, None),
    (500, vllm("cannot schedule new futures after shutdown", 500), 503, "server_error", "not_ready", None),
    (500, vllm("EngineCore encountered an issue", 500), 503, "server_error", "not_ready", None),
    (503, vllm("The engine is currently busy and cannot accept", 503), 503, "server_error", "engine_overloaded", None),
    (500, b"Internal Server Error", 500, "server_error", None, None),
    (
        *(400, vllm("This model's maximum context length is 256 tokens. However, you requested 300", 400)),
        *(400, "invalid_request_error", "context_length_exceeded", "prompt"),
    ),
]  # fmt: skip


@pytest.mark.parametrize(("status", "body", "now", "type", "code", "param"), CASES)
def test_our_form(status: int, body: bytes, now: int, type: str, code: str | None, param: str | None) -> None:
    error = translated(status, body, scope())
    assert (error.status, error.type, error.code, error.param) == (now, type, code, param)
    assert "SECRET" not in str(error) and len(str(error)) < 400
    assert (error.headers.get("Retry-After") == "1") is (now == 503)


def test_our_own_errors_stay_as_they_are() -> None:
    ours = b'{"error": {"message": "a", "type": "server_error", "param": null, "code": "engine_dead"}}'
    error = translated(503, ours, scope())
    assert (str(error), error.code, error.headers["Retry-After"]) == ("a", "engine_dead", "1")


def test_the_methods_of_a_path_are_named() -> None:
    async def nothing(request: Request) -> Response:
        return Response()

    app = Starlette(routes=[Route("/v1/completions", nothing, methods=["POST"])])
    assert translated(405, b"", scope(app=app, method="GET")).headers["Allow"] == "POST"


def answered(app: Callable[..., Any], lifecycle: Lifecycle | None = None, deadline_s: float = 60) -> list[Any]:
    """What the client gets, whatever the application raises."""
    known = lifecycle or Lifecycle()
    sent: list[Any] = []

    async def run() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        async def receive() -> Any:
            await asyncio.Event().wait()

        with suppress(ZeroDivisionError):
            await Endings(Failures(app, known), known, deadline_s)(scope(), receive, send)

    asyncio.run(run())
    return sent


def starts(status: int = 200, kind: bytes = b"text/event-stream; charset=utf-8") -> dict[str, Any]:
    return {"type": "http.response.start", "status": status, "headers": [(b"content-type", kind)]}


def part(text: str, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": text.encode(), "more_body": more}


def text_of(sent: list[Any]) -> str:
    return b"".join(message.get("body", b"") for message in sent).decode()


def test_answers_pass_as_they_come() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(starts())
        await send(part("data: {}\n\n"))
        await send(part("data: [DONE]\n\n", more=False))

    sent = answered(app)
    assert [message.get("body") for message in sent[1:]] == [b"data: {}\n\n", b"data: [DONE]\n\n"]
    assert dict(sent[0]["headers"])[b"cache-control"] == b"no-cache"


def test_an_error_within_a_stream_is_ours_too() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(starts())
        await send(part(f"data: {vllm('/a/SECRET', 500).decode()}\n\n"))
        await send(part("data: [DONE]\n\n", more=False))

    event, done = text_of(answered(app)).strip().split("\n\n")
    error = json.loads(event.removeprefix("data: "))["error"]
    assert set(error) == {"message", "type", "param", "code"} and error["type"] == "server_error"
    assert "abc" in error["message"] and "SECRET" not in error["message"] and done == "data: [DONE]"


@pytest.mark.parametrize("raises", [True, False])
def test_a_stream_that_breaks_off_says_so(raises: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(starts())
        await send(part("data: {}\n\n"))
        if raises:
            raise ZeroDivisionError("SECRET")
        await send(part("", more=False))

    sent = answered(app)
    assert "SECRET" not in text_of(sent)
    assert '"server_error"' in text_of(sent) and text_of(sent).endswith("data: [DONE]\n\n")


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("drained", [True, False])
def test_who_takes_too_long_is_told_so(begun: bool, drained: bool) -> None:
    """The deadline, or the end of a drain; the application hears that the client has left."""
    lifecycle, heard = Lifecycle(), []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if begun:
            await send(starts())
        if drained:
            lifecycle.expired.set()
        heard.append(await receive())
        await send(part("data: late\n\n", more=False))

    sent = answered(app, lifecycle, 60 if drained else 0.05)
    assert heard == [{"type": "http.disconnect"}]
    assert sent[0]["status"] == (200 if begun else 503 if drained else 504)
    assert ('"not_ready"' if drained else '"timeout"') in text_of(sent) and "late" not in text_of(sent)
    assert text_of(sent).endswith("data: [DONE]\n\n") is begun


def test_while_a_server_drains_its_failures_are_no_bugs() -> None:
    lifecycle = Lifecycle()
    lifecycle.draining = True

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send(starts(500, b"application/json"))
        await send(part("Internal Server Error", more=False))

    sent = answered(app, lifecycle)
    assert sent[0]["status"] == 503 and '"not_ready"' in text_of(sent)
