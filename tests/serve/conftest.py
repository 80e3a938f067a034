"""A scripted engine behind the real application, on a real socket."""

import asyncio
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import uvicorn
from processes import soon
from scripted_engine import REPLY, ScriptedEngine, build_tokenizer
from transformers import PreTrainedTokenizerFast

from twofour.serve.app import create_app
from twofour.serve.config import ServeConfig
from twofour.serve.edge.lifecycle import Lifecycle
from twofour.serve.edge.observing.observe import Watcher
from twofour.serve.http.listening import listen
from twofour.serve.http.server import QuietServer, Tls, http_config, url_of
from twofour.serve.kernels.cpu import extension


@dataclass
class Running:
    """A server, its engine, and a client for it."""

    url: str
    engine: ScriptedEngine
    lifecycle: Lifecycle
    loop: asyncio.AbstractEventLoop
    client: httpx.Client
    address: tuple[str, int]
    reply: str = REPLY

    def complete(self, **fields: Any) -> httpx.Response:
        return self.client.post("/v1/completions", json={"model": "m", "prompt": "hi", **fields})

    def chat(self, *messages: Any, **fields: Any) -> httpx.Response:
        said = list(messages) or [{"role": "user", "content": "hi"}]
        return self.client.post("/v1/chat/completions", json={"model": "m", "messages": said, **fields})

    def metric(self, name: str) -> float:
        """The sum of a series over its labels; `name` may end in a label, as in `x{reason="y"`."""
        lines = self.client.get("/metrics").text.splitlines()
        found = [line for line in lines if line.startswith(name) and line[len(name)] in "{ ,}"]
        assert found, f"{name} is not in /metrics"
        return sum(float(line.rpartition(" ")[2]) for line in found)

    def eventually(self, true: Callable[[], bool]) -> None:
        """For what the server's thread does soon, after its answer; the time is a limit, not a measure."""
        assert soon(true, 30)

    def control(self) -> None:
        """Alive, and a plain completion says what it always says."""
        assert self.client.get("/health").status_code == 200
        answer = self.complete(max_tokens=100)
        assert answer.status_code == 200, answer.text
        assert answer.json()["choices"][0]["text"] == REPLY


class Launcher:
    """Starts servers, and stops them all at the end."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self._stops: list[Callable[[], None]] = []

    def engine(self, reply: str = REPLY, **script: Any) -> ScriptedEngine:
        ids = self.ids(reply)
        eos = self.tokenizer.convert_tokens_to_ids("<|end|>")
        return ScriptedEngine(len(self.tokenizer), eos, lambda prompt: ids, **script)

    def ids(self, text: str) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=False).input_ids)

    def __call__(
        self,
        engine: ScriptedEngine | None = None,
        watchers: Sequence[Watcher] = (),
        tls: Tls | None = None,
        **config: Any,
    ) -> Running:
        engine = engine or self.engine()
        listener = listen("127.0.0.1", 0)
        # A client that reads nothing is noticed after 64 KiB, not after the 4 MB that the system takes otherwise.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
        address = listener.getsockname()
        lifecycle = Lifecycle()
        served = ServeConfig(served_model_name="m", **config)
        app = create_app(engine, served, self.tokenizer, lifecycle=lifecycle, watchers=watchers)
        server = QuietServer(http_config(app, tls))
        loop, thread = in_background(server, listener)
        engine.loop = loop
        url = url_of(listener, tls)
        client = httpx.Client(base_url=url, timeout=10, trust_env=False)
        self._stops += [client.close, lambda: end(server, thread)]
        return Running(url, engine, lifecycle, loop, client, address)

    def close(self) -> None:
        for stop in reversed(self._stops):
            stop()


def in_background(
    server: uvicorn.Server, listener: socket.socket
) -> tuple[asyncio.AbstractEventLoop, threading.Thread]:
    loop = asyncio.new_event_loop()

    def work() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(server.serve(sockets=[listener]))

    thread = threading.Thread(target=work)
    thread.start()
    return loop, thread


def end(server: uvicorn.Server, thread: threading.Thread) -> None:
    server.should_exit = server.force_exit = True
    thread.join(timeout=10)
    assert not thread.is_alive()


@pytest.fixture(scope="session")
def byte_tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


@pytest.fixture
def launch(byte_tokenizer: PreTrainedTokenizerFast) -> Iterator[Launcher]:
    launcher = Launcher(byte_tokenizer)
    yield launcher
    launcher.close()


@pytest.fixture(scope="module")
def launch_once(byte_tokenizer: PreTrainedTokenizerFast) -> Iterator[Launcher]:
    launcher = Launcher(byte_tokenizer)
    yield launcher
    launcher.close()


@pytest.fixture(scope="module")
def shared(request: pytest.FixtureRequest) -> Any:
    """One server for the tests that leave it as they found it; with --engine vllm, a real one of that."""
    if request.config.getoption("--engine") == "vllm":
        return request.getfixturevalue("vllm_server")
    return request.getfixturevalue("launch_once")()


def check_refusal(answer: Any, status: int, code: str | None = None, param: str | None = None) -> dict[str, Any]:
    """The answer has that status and OpenAI's body, all four fields of it."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error"}
    error: dict[str, Any] = body["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert 0 < len(error["message"]) < 400
    assert error["type"] == ("server_error" if status >= 500 else "invalid_request_error")
    assert (error["code"], error["param"]) == (code, param)
    assert answer.headers["content-type"] == "application/json"
    return error


@pytest.fixture(scope="session")
def refused() -> Callable[..., dict[str, Any]]:
    return check_refusal


@pytest.fixture(autouse=True)
def no_tiles(monkeypatch: pytest.MonkeyPatch) -> None:
    """The runner of a model is the same in all tests, on processors with AMX, too."""
    monkeypatch.setattr("twofour.serve.engine.runners.choice.has_tiles", lambda: False)


@pytest.fixture(params=["avx2", "avx512", "avx512bf16"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The CPU kernels, held to one instruction set."""
    if (cpu := extension.loaded()) is None:
        pytest.skip("the C extension is not built")
    if request.param not in cpu.isas():
        pytest.skip(f"this machine has no {request.param}")
    before = cpu.isa()
    cpu.force(request.param)
    yield request.param
    cpu.force(before)
