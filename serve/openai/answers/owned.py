"""The work for a request has one owner, which ends it: when it is done, the client has left, or its time is over."""

import asyncio
import time
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

from twofour.serve.edge.errors import shutting_down, timed_out
from twofour.serve.openai.serving import Caller, Serving

Result = TypeVar("Result")


async def owned(serving: Serving, caller: Caller, receive: Receive, work: Coroutine[Any, Any, Result]) -> Result | None:
    """What the work returns; None if the client has left. Raises the RequestError for which the work was ended."""
    working = asyncio.create_task(work)
    left = asyncio.create_task(client_left(receive))
    expired = asyncio.create_task(serving.lifecycle.expired.wait())
    tasks: tuple[asyncio.Task[Any], ...] = (working, left, expired)
    try:
        await asyncio.wait(tasks, timeout=left_s(serving, caller), return_when=asyncio.FIRST_COMPLETED)
        gone, over = left.done(), expired.done()
    finally:
        await cancel(tasks)
    if not working.cancelled():
        return working.result()
    if gone:
        return None
    raise shutting_down() if over else timed_out(serving.config.deadline_s)


def left_s(serving: Serving, caller: Caller) -> float:
    """Seconds left until the deadline, which runs from the arrival of the request."""
    return max(0.0, serving.config.deadline_s - (time.perf_counter() - caller.arrived_at))


async def body_of(receive: Receive) -> bytes:
    """The whole body: the edge has read it."""
    body: bytes = (await receive())["body"]
    return body


async def client_left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def cancel(tasks: tuple[asyncio.Task[Any], ...]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
