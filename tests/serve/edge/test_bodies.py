"""Request bodies: what all of them may take together."""

import asyncio
from collections.abc import Sequence
from typing import Any

from twofour.serve.edge.bodies import LARGEST_AT_A_TIME, UNCOUNTED_BYTES, BodyLimit, release_body

LIMIT = 2 * UNCOUNTED_BYTES


class Edge:
    """A body limit before an application that holds what it has got."""

    def __init__(self) -> None:
        self.layer = BodyLimit(self._app, LIMIT, deadline_s=10)
        self.held: list[bytes] = []
        self.over = asyncio.Event()

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.held.append((await receive())["body"])
        await self.over.wait()
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def settled(self) -> None:
        for _ in range(20):
            await asyncio.sleep(0)

    async def post(self, chunks: Sequence[bytes], declared: int | None = None) -> int:
        """The status of the answer."""
        left, statuses = list(chunks), []

        async def receive() -> Any:
            return {"type": "http.request", "body": left.pop(0), "more_body": bool(left)}

        async def send(message: Any) -> None:
            statuses.append(message.get("status"))

        headers = [] if declared is None else [(b"content-length", b"%d" % declared), (b"expect", b"100-continue")]
        await self.layer({"type": "http", "method": "POST", "headers": headers, "state": {}}, receive, send)
        return int(statuses[0])


def test_all_bodies_together_have_a_budget() -> None:
    async def scene() -> None:
        edge = Edge()
        full = [b"x" * UNCOUNTED_BYTES] * 2
        most = LARGEST_AT_A_TIME * LIMIT // UNCOUNTED_BYTES  # each counts from the first byte over what is free
        waiting = [asyncio.create_task(edge.post(full)) for _ in range(most)]
        await edge.settled()
        assert await edge.post([b"x" * UNCOUNTED_BYTES, b"x"]) == 503
        assert await edge.post([b"x"], declared=LIMIT) == 503  # unread
        small = asyncio.create_task(edge.post([b"x" * UNCOUNTED_BYTES]))
        await edge.settled()
        assert [len(body) for body in edge.held] == [LIMIT] * most + [UNCOUNTED_BYTES]
        edge.over.set()
        assert {await answer for answer in [*waiting, small]} == {200}
        assert edge.layer.budget.held_bytes == 0
        assert await edge.post(full) == 200

    asyncio.run(asyncio.wait_for(scene(), 30))


def test_a_body_over_its_limit_holds_nothing() -> None:
    async def scene() -> None:
        edge = Edge()
        assert await edge.post([b"x" * LIMIT, b"x", b"x"]) == 413
        assert edge.layer.budget.held_bytes == 0 and edge.held == []

    asyncio.run(asyncio.wait_for(scene(), 30))


def test_a_body_that_is_done_with_counts_no_more() -> None:
    class Prompt(Edge):
        async def _app(self, scope: Any, receive: Any, send: Any) -> None:
            await receive()
            release_body(scope)
            await super()._app(scope, self.nothing, send)

        async def nothing(self) -> Any:
            return {"body": b""}

    async def scene() -> None:
        edge = Prompt()
        waiting = [asyncio.create_task(edge.post([b"x" * LIMIT])) for _ in range(2 * LARGEST_AT_A_TIME)]
        await edge.settled()
        assert len(edge.held) == len(waiting) and edge.layer.budget.held_bytes == 0
        edge.over.set()
        assert {await answer for answer in waiting} == {200}
        assert edge.layer.budget.held_bytes == 0

    asyncio.run(asyncio.wait_for(scene(), 30))
