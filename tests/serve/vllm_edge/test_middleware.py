"""What the edge does before vLLM's server answers."""

import asyncio
from typing import Any

import pytest

from twofour.serve.vllm_edge import middleware, settings
from twofour.serve.vllm_edge.settings import Settings
from twofour.serve.vllm_edge.shared import shared


def test_a_server_without_our_paths_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """uvicorn ends where the start-up has failed."""
    monkeypatch.setenv(settings.VARIABLE, Settings("m").as_variable())
    monkeypatch.setattr(middleware, "write_access_log", lambda: None)
    shared.cache_clear()
    said: list[Any] = []

    async def send(message: Any) -> None:
        said.append(message)

    async def start() -> None:
        await middleware.Edge(app=None)({"type": "lifespan"}, None, send)  # type: ignore[arg-type]

    asyncio.run(start())
    shared.cache_clear()
    assert [message["type"] for message in said] == ["lifespan.startup.failed"]
    assert "install twofour anew" in said[0]["message"]
