"""The end of vLLM's server where it does not do as it is told."""

import asyncio
import select
import socket
import sys
import tempfile
from pathlib import Path

import pytest

from twofour.serve.vllm_edge import control
from twofour.serve.vllm_edge.control import ALIVE, UP
from twofour.serve.vllm_edge.supervise import end


async def server_that_is_up(path: str) -> socket.socket:
    loop, server = asyncio.get_running_loop(), socket.socket(socket.AF_UNIX)
    server.setblocking(False)
    await loop.sock_connect(server, path)
    await loop.sock_sendall(server, UP)
    return server


def test_a_server_that_is_killed_with_words_unread_has_drained() -> None:
    async def life() -> None:
        async with control.listening() as (link, path):
            server = await server_that_is_up(path)
            await link.up.wait()
            drain = asyncio.create_task(link.drain())
            while not select.select([server], [], [], 0)[0]:
                await asyncio.sleep(0.01)
            server.close()  # with data unread: its peer sees a reset connection, and no end
            await asyncio.wait_for(drain, 30)

    asyncio.run(life())


def test_a_server_is_alive_while_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    async def life() -> None:
        async with control.listening() as (link, path):
            server = await server_that_is_up(path)
            await link.up.wait()
            assert link.alive
            monkeypatch.setattr(control, "SILENT_S", 0.0)
            assert not link.alive
            monkeypatch.setattr(control, "SILENT_S", 600.0)
            link._alive_at -= 600
            await asyncio.get_running_loop().sock_sendall(server, ALIVE)
            while not link.alive:
                await asyncio.sleep(0.01)
            server.close()

    asyncio.run(asyncio.wait_for(life(), 30))


def test_a_long_path_of_temporary_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As of batch systems, with an id of a job in it: too long for a socket."""
    long = tmp_path / ("a" * 100)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))

    async def life() -> None:
        async with control.listening() as (link, path):
            (await server_that_is_up(path)).close()
            await link.up.wait()
            assert Path(path).exists()
        assert not Path(path).parent.exists()

    asyncio.run(life())


def test_a_server_that_never_says_that_it_has_drained_is_ended() -> None:
    async def life() -> int | None:
        async with control.listening() as (link, path):
            server = await server_that_is_up(path)
            await link.up.wait()
            process = await asyncio.create_subprocess_exec(sys.executable, "-c", "import time; time.sleep(600)")
            await asyncio.wait_for(end(process, link, 0.1), 60)
            server.close()
            return process.returncode

    assert asyncio.run(life()) == -15
