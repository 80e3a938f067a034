"""The verb, and the life of a server: load, announce, drain, end; with real signals."""

import asyncio
import os
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import httpx
import pytest

from twofour.prune.errors import InputError, ServerError
from twofour.serve.app import create_app
from twofour.serve.commands.serve import start_text
from twofour.serve.commands.starting import curl
from twofour.serve.config import ServeConfig
from twofour.serve.edge.harden import EdgeConfig
from twofour.serve.edge.lifecycle import Lifecycle
from twofour.serve.engine.supervise import DEFAULT, Patience
from twofour.serve.http import connections, server
from twofour.serve.http.listening import listen

STREAM = {"model": "m", "prompt": "hi", "max_tokens": 50, "stream": True}


def test_start_text(launch: Any) -> None:
    info = launch.engine().info
    text = start_text(info, ServeConfig("m"), "http://127.0.0.1:1", "127.0.0.1")
    for part in (
        "2:4 sparse",
        "float32 on cpu",
        "reference for 7 linears",
        "lm_head int8, other linears bfloat16",
        "4,096 tokens",
        "graphs    36 decode steps captured",
        "http://127.0.0.1:1/v1",
    ):
        assert part in text
    assert "warning" not in text
    assert "graphs" not in start_text(replace(info, cuda_graphs=0), ServeConfig("m"), "http://h:1", "127.0.0.1")
    assert "warning" in start_text(info, ServeConfig("m"), "http://0.0.0.0:1", "0.0.0.0")
    keyed = ServeConfig("m", edge=EdgeConfig(api_keys=(b"x",)))
    assert "warning" not in start_text(info, keyed, "http://0.0.0.0:1", "0.0.0.0")
    assert "Authorization" in curl("http://h:1", keyed)
    assert "Authorization" not in curl("http://h:1", ServeConfig("m"))


def test_a_port_in_use_is_named() -> None:
    with listen("127.0.0.1", 0) as listener:
        taken = listener.getsockname()[1]
        assert server.url_of(listener) == f"http://127.0.0.1:{taken}"
        with pytest.raises(InputError, match=f"port {taken}.*choose another"):
            listen("127.0.0.1", taken)


def test_connections_send_at_once() -> None:
    with listen("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()):
        accepted, _ = listener.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0


def test_a_head_that_does_not_come_is_not_waited_for(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.DEADLINES_S, connections.Phase.HEAD, 0.2)
    running = launch()
    whole = b"GET /version HTTP/1.1\r\nHost: h\r\n\r\n"
    for before, begun in ((b"", b""), (b"", b"GET /version HT"), (b"", whole[:-2]), (whole, b"GET /")):
        with socket.create_connection(running.address, timeout=4) as connection:
            if before:
                connection.sendall(before)
                assert connection.recv(65536).startswith(b"HTTP/1.1 200")
            connection.sendall(begun)
            while connection.recv(65536):
                pass
    running.control()


def test_an_answer_may_take_longer_than_a_head(launch: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(connections.DEADLINES_S, connections.Phase.HEAD, 0.05)
    running = launch(launch.engine(hold_after=2))
    with running.client.stream("POST", "/v1/completions", json=STREAM) as answer:
        lines = answer.iter_lines()
        next(lines)
        time.sleep(0.1)  # the deadline passes
        running.engine.release()
        assert list(lines)[-2] == "data: [DONE]"


class Stage:
    """A server in this process and a client beside it."""

    def __init__(self, launch: Any, engine: Any) -> None:
        self.engine, self.lifecycle = engine, Lifecycle()
        self.announced = asyncio.Event()
        self._app = create_app(engine, ServeConfig("m"), launch.tokenizer, lifecycle=self.lifecycle)
        self._listener = listen("127.0.0.1", 0)
        self.client = httpx.AsyncClient(base_url=server.url_of(self._listener), timeout=10, trust_env=False)

    async def play(
        self, scene: Callable[["Stage"], Awaitable[None]], drain_s: float, patience: Patience, pre_drain_s: float
    ) -> None:
        """Serve until it ends; the scene must come to its own end as well."""
        playing = asyncio.ensure_future(scene(self))
        try:
            await server.serve(
                self._app,
                self._listener,
                self.engine,
                self.lifecycle,
                drain_s,
                lambda _: self.announced.set(),
                patience,
                pre_drain_s=pre_drain_s,
            )
        finally:
            self._listener.close()
            await asyncio.wait_for(playing, 10)
            await self.client.aclose()

    async def complete(self) -> httpx.Response:
        return await self.client.post("/v1/completions", json=STREAM)

    async def status(self, path: str) -> int:
        return (await self.client.get(path)).status_code

    async def started(self) -> None:
        await asyncio.to_thread(self.engine.started.get, timeout=5)


def play(
    launch: Any,
    engine: Any,
    scene: Callable[[Stage], Awaitable[None]],
    drain_s: float = 30,
    patience: Patience = DEFAULT,
    pre_drain_s: float = 0,
) -> Stage:
    async def main() -> Stage:
        engine.loop = asyncio.get_running_loop()
        stage = Stage(launch, engine)
        await stage.play(scene, drain_s, patience, pre_drain_s)
        return stage

    return asyncio.run(main())


def terminate() -> None:
    assert signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL, "this would end the tests, not the server"
    os.kill(os.getpid(), signal.SIGTERM)


def test_it_answers_while_loading(launch: Any) -> None:
    engine = launch.engine(ready=False)
    loaded = asyncio.Event()

    async def start() -> None:
        await loaded.wait()
        engine.ready = True

    engine.start = start

    async def scene(stage: Stage) -> None:
        assert [await stage.status(path) for path in ("/health", "/ready", "/v1/models")] == [200, 503, 503]
        loaded.set()
        await stage.announced.wait()
        assert await stage.status("/ready") == 200
        terminate()

    assert play(launch, engine, scene).engine.stopped


def test_a_signal_while_loading_ends_it(launch: Any) -> None:
    engine = launch.engine(ready=False)
    engine.start = asyncio.Event().wait

    async def scene(stage: Stage) -> None:
        assert await stage.status("/health") == 200
        terminate()

    stage = play(launch, engine, scene)
    assert engine.stopped
    assert not stage.announced.is_set()


def test_sigterm_lets_a_stream_finish(launch: Any) -> None:
    async def scene(stage: Stage) -> None:
        await stage.announced.wait()
        streaming = asyncio.ensure_future(stage.complete())
        await stage.started()
        terminate()
        while await stage.status("/ready") == 200:
            await asyncio.sleep(0)
        assert (await stage.complete()).status_code == 503
        assert await stage.status("/health") == 200
        stage.engine.release()
        text = (await streaming).text
        assert '"finish_reason":"stop"' in text
        assert text.endswith("data: [DONE]\n\n")

    assert play(launch, launch.engine(hold_after=2), scene).engine.stopped


def test_before_the_drain_new_requests_are_taken_while_ready_says_no(launch: Any) -> None:
    async def scene(stage: Stage) -> None:
        await stage.announced.wait()
        terminate()
        while await stage.status("/ready") == 200:
            await asyncio.sleep(0)
        streaming = asyncio.ensure_future(stage.complete())
        await stage.started()
        stage.engine.release()
        assert (await streaming).text.endswith("data: [DONE]\n\n")
        terminate()

    assert play(launch, launch.engine(hold_after=2), scene, pre_drain_s=60).engine.stopped


@pytest.mark.parametrize("drain_s", [0.05, 30])
def test_the_drain_ends_with_its_time_or_a_second_signal(launch: Any, drain_s: float) -> None:
    async def scene(stage: Stage) -> None:
        await stage.announced.wait()
        streaming = asyncio.ensure_future(stage.complete())
        await stage.started()
        terminate()
        while await stage.status("/ready") == 200:
            await asyncio.sleep(0)
        if drain_s == 30:
            terminate()
        text = (await streaming).text
        assert '"code": "not_ready"' in text
        assert text.endswith("data: [DONE]\n\n")

    stage = play(launch, launch.engine(hold_after=2), scene, drain_s)
    assert stage.engine.stopped
    assert stage.engine.open == 0


def test_an_engine_that_dies_ends_the_server_with_an_error(launch: Any) -> None:
    async def scene(stage: Stage) -> None:
        await stage.announced.wait()
        stage.engine.die()
        assert await stage.status("/health") == 503

    with pytest.raises(ServerError, match="the engine ended, death 1 within 3600 s: it is not started again"):
        play(launch, launch.engine(), scene, patience=Patience(deaths=1))


def test_an_engine_that_dies_is_started_again(launch: Any) -> None:
    async def scene(stage: Stage) -> None:
        await stage.announced.wait()
        streaming = asyncio.ensure_future(stage.complete())
        await stage.started()
        stage.engine.die()
        assert '"code": "not_ready"' in (await streaming).text
        down = [await stage.client.get(path) for path in ("/health", "/ready", "/v1/models")]
        assert [answer.status_code for answer in down] == [503, 503, 503]
        assert [answer.headers.get("retry-after") for answer in down] == ["1", "1", "1"]
        assert (await stage.complete()).status_code == 503
        while not stage.engine.ready:
            await asyncio.sleep(0.01)
        assert [await stage.status(path) for path in ("/health", "/ready", "/v1/models")] == [200, 200, 200]
        assert "[DONE]" in (await stage.complete()).text
        terminate()

    play(launch, launch.engine(hold_after=2), scene, patience=Patience(pause_s=0.2))


def test_an_engine_that_cannot_load_says_why(launch: Any) -> None:
    engine = launch.engine(ready=False)

    async def start() -> None:
        raise ServerError("no such model")

    engine.start = start

    async def scene(stage: Stage) -> None:
        return None

    with pytest.raises(ServerError, match="no such model"):
        play(launch, engine, scene)
    assert engine.stopped
