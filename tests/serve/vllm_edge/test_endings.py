"""How an answer ends that may not go on."""

import asyncio
from typing import Any

from twofour.serve.edge.lifecycle import Lifecycle
from twofour.serve.vllm_edge.endings import DONE, Endings

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"text/event-stream")]}


def chunk(text: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.response.body", "body": b"data: " + text + b"\n\n", "more_body": more}


def test_the_error_is_the_end_also_for_a_client_that_is_slow() -> None:
    bodies: list[bytes] = []
    taken = asyncio.Event()

    async def send(message: Any) -> None:
        if b'"error"' in message.get("body", b""):
            await taken.wait()
        bodies.append(message.get("body", b""))

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await send(START)
        await send(chunk(b"{}"))
        await receive()
        await send(chunk(b'{"finish_reason": "abort"}'))
        await send(chunk(b"[DONE]", more=False))

    async def receive() -> Any:
        await asyncio.sleep(0.3)
        asyncio.get_running_loop().call_later(0.3, taken.set)
        return {"type": "http.request", "body": b"", "more_body": False}

    scope = {"type": "http", "path": "/v1/completions", "state": {}, "headers": []}
    asyncio.run(Endings(application, Lifecycle(), 0.1)(scope, receive, send))
    assert [b"abort" in body for body in bodies] == [False] * len(bodies)
    assert b'"error"' in bodies[-1] and bodies[-1].endswith(DONE)
