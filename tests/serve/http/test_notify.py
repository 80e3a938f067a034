"""Words to a supervisor, on a real datagram socket: of the module alone, then of a server in its life."""

import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from notifications import listening, next_word, told

from twofour.serve.http import notify


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[socket.socket]:
    with listening(tmp_path) as bound:
        yield bound


def test_a_word_is_one_datagram(supervisor: socket.socket) -> None:
    notify.say(notify.READY, {"NOTIFY_SOCKET": supervisor.getsockname()})
    assert told(supervisor) == ["READY=1"]


def test_a_name_without_a_file() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(f"\0twofour-test-{os.getpid()}")
        notify.say(notify.STOPPING, {"NOTIFY_SOCKET": f"@twofour-test-{os.getpid()}"})
        assert told(bound) == ["STOPPING=1"]


def test_a_supervisor_that_is_not_there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    notify.say(notify.READY, {})
    assert not caplog.records
    notify.say(notify.READY, {"NOTIFY_SOCKET": str(tmp_path / "none")})
    assert "check NOTIFY_SOCKET" in caplog.text


@pytest.mark.parametrize(
    ("environment", "limit_s"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "2500000"}, 2.5),
        ({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": str(os.getpid())}, 2.5),
        ({"WATCHDOG_USEC": "2500000", "WATCHDOG_PID": "1"}, None),
    ],
)
def test_how_long_it_waits(environment: dict[str, str], limit_s: float | None) -> None:
    assert notify.watchdog_s(environment) == limit_s


def test_signs_of_life_are_those_of_progress(supervisor: socket.socket) -> None:
    asked = 0

    async def life() -> None:
        enough = asyncio.Event()

        def progress() -> bool:
            nonlocal asked
            asked += 1
            if asked > 4:
                enough.set()
            return asked in (1, 3)

        environment = {"NOTIFY_SOCKET": supervisor.getsockname(), "WATCHDOG_USEC": "4000"}
        feeding = asyncio.create_task(notify.feed(progress, environment))
        await asyncio.wait_for(enough.wait(), 30)
        feeding.cancel()

    asyncio.run(life())
    assert told(supervisor) == ["WATCHDOG=1"] * 2


def test_a_server_tells_its_life(supervisor: socket.socket, tiny_model_folder: Path) -> None:
    told_by_systemd = {"NOTIFY_SOCKET": supervisor.getsockname(), "WATCHDOG_USEC": "400000"}
    command = [sys.executable, "-m", "twofour", "serve", str(tiny_model_folder), "--port", "0", "--threads", "1"]
    with subprocess.Popen(command, env={**os.environ, **told_by_systemd}, stdout=-3, stderr=-3) as server:
        words = [next_word(supervisor) for _ in range(3)]
        while notify.READY not in words:
            words.append(next_word(supervisor))
        assert next_word(supervisor) == notify.ALIVE
        server.send_signal(signal.SIGTERM)
        assert server.wait(60) == 0
    rest = told(supervisor)
    assert set(words) == {notify.READY, notify.ALIVE} and words.count(notify.READY) == 1
    assert rest[-1] == notify.STOPPING and rest.count(notify.STOPPING) == 1
