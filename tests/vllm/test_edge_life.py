"""The life of `twofour serve --engine vllm`: ready, drained, killed. What a supervisor and a client see."""

import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
from notifications import listening, next_word, told
from vllm_server import PYTHON, VllmServer, gone, model, quiet

from twofour.serve.http.notify import ALIVE, READY, STOPPING

Start = Callable[..., VllmServer]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with room for long answers."""
    return model(tmp_path_factory.mktemp("model"), max_position_embeddings=8192)


@pytest.fixture
def start(folder: Path, tmp_path: Path) -> Iterator[Start]:
    started: list[VllmServer] = []

    def make(*flags: str) -> VllmServer:
        started.append(VllmServer(folder, tmp_path / "log", *flags))
        return started[-1].wait()

    yield make
    for server in started:
        server.close()


def error_in(lines: list[str]) -> dict[str, str]:
    """Of a stream that ends with one."""
    assert lines[-1] == "data: [DONE]"
    error: dict[str, str] = json.loads(lines[-2].removeprefix("data: "))["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return error


def test_systemd_is_told(folder: Path, tmp_path: Path) -> None:
    with listening(tmp_path) as supervisor:
        told_by_systemd = {"NOTIFY_SOCKET": supervisor.getsockname(), "WATCHDOG_USEC": "400000"}
        server = VllmServer(folder, tmp_path / "log", **told_by_systemd).wait()
        try:
            assert next_word(supervisor) in (READY, ALIVE)
            assert {next_word(supervisor) for _ in range(4)} <= {READY, ALIVE}
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(60) == 0
        finally:
            server.close()
        assert told(supervisor)[-1] == STOPPING


def test_a_drain(start: Start) -> None:
    server = start()
    family = server.family()
    with server.stream(max_tokens=3000) as lines:
        server.process.send_signal(signal.SIGTERM)
        server.eventually(lambda: httpx.get(f"{server.url}/ready", trust_env=False).status_code == 503)
        assert httpx.get(f"{server.url}/health", trust_env=False).status_code == 200
        late = httpx.post(f"{server.url}/v1/completions", json={"model": "m", "prompt": "hi"}, trust_env=False)
        assert (late.status_code, late.json()["error"]["code"], late.headers["retry-after"]) == (503, "not_ready", "1")
        rest = list(lines)
    assert rest[-1] == "data: [DONE]"
    assert json.loads(rest[-2].removeprefix("data: "))["choices"][0]["finish_reason"] == "length"
    assert server.end() == 0, server.log[-4000:]
    assert gone(family)


def test_a_drain_that_is_over(start: Start) -> None:
    server = start("--drain-s", "0.5")
    with server.stream(max_tokens=8000) as lines:
        server.process.send_signal(signal.SIGTERM)
        assert error_in(list(lines))["code"] == "not_ready"
    assert server.end() == 0


def test_a_second_signal_waits_for_nobody(start: Start) -> None:
    server = start("--drain-s", "600")
    family = server.family()
    with server.stream(max_tokens=8000):
        server.process.send_signal(signal.SIGTERM)
        server.eventually(lambda: httpx.get(f"{server.url}/ready", trust_env=False).status_code == 503)
        server.process.send_signal(signal.SIGTERM)
        assert server.end() == 0
    assert gone(family)


def test_an_engine_that_dies(start: Start) -> None:
    """vLLM itself ends with status 0 then."""
    server = start()
    family = server.family()
    with server.stream(max_tokens=8000) as lines:
        os.kill(server.named("VLLM::EngineCor"), signal.SIGKILL)
        assert error_in(list(lines))["type"] == "server_error"
    assert server.end() == 1
    assert "vLLM has ended by itself" in server.log
    assert gone(family)


def test_nothing_outlives_the_command(start: Start) -> None:
    server = start()
    family = server.family()
    assert len(family) > 2
    server.process.kill()
    server.process.wait()
    assert gone(family)


@pytest.mark.parametrize("wrong", [("nowhere",), ("nowhere", "--max-num-seqs", "0")], ids=["no model", "a bad value"])
def test_what_cannot_start(wrong: tuple[str, ...], tmp_path: Path) -> None:
    command = [PYTHON, "-P", "-m", "twofour", "serve", *wrong, "--engine", "vllm", "--port", "0"]
    ended = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **quiet(tmp_path)}, cwd=tmp_path)
    assert ended.returncode not in (0, None)
    assert "ready at" not in ended.stdout
