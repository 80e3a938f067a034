import os
import sys
from pathlib import Path

import pytest
from processes import soon, state

from twofour.bench.targets import servers
from twofour.bench.targets.servers import Options, Placement
from twofour.prune.errors import ServerError

SCRIPT = Path(__file__).parents[2] / "helpers" / "stand_in_server.py"
linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")


def command(tmp_path: Path, *more: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "dense", "--engine-pid", str(tmp_path / "engine"), *more]


def engine(tmp_path: Path) -> int:
    return int((tmp_path / "engine").read_text())


def becomes(pid: int, *states: str | None) -> bool:
    """Signals take effect soon, not at once."""
    return soon(lambda: state(pid) in states)


def test_one_cpu_is_the_clients() -> None:
    assert servers.place([0, 1]) == Placement(1)
    assert servers.place([4]) == Placement(1)
    assert servers.place([2, 3, 5, 7]) == Placement(3, (3, 5, 7), (2,))
    assert servers.place([0, 1, 2], threads=8) == Placement(8, (1, 2), (0,))


@linux
def test_pinned_for_the_length_of_a_block() -> None:
    before = os.sched_getaffinity(0)
    one = min(before)
    with servers.pinned([one]):
        assert os.sched_getaffinity(0) == {one}
    assert os.sched_getaffinity(0) == before


def test_the_command_serves_on_any_free_port_of_this_host() -> None:
    found = servers.serve_command("folder", Options(3, "reference"))
    assert found[1:5] == ["-m", "twofour", "serve", "folder"]
    assert found[5:] == ["--host", "127.0.0.1", "--port", "0", "--threads", "3", "--kernels", "reference"]
    assert servers.serve_command("folder", Options(3, flags=("--lm-head", "int8")))[-2:] == ["--lm-head", "int8"]


@linux
def test_frozen_thawed_and_gone(tmp_path: Path) -> None:
    cpu = min(os.sched_getaffinity(0))
    with servers.started(command(tmp_path), tmp_path / "log", [cpu]) as server:
        url = server.url()
        child = engine(tmp_path)
        assert os.sched_getaffinity(child) == {cpu}
        server.freeze()
        assert becomes(child, "T")
        with server.awake(url):
            assert becomes(child, "S", "R")
        assert becomes(child, "T")  # and so it is left: the end must come all the same
    assert becomes(child, None)  # the engine ignores SIGTERM, and its parent does not wait for it
    assert "listening on" in (tmp_path / "log").read_text()


@linux
def test_an_interrupt_leaves_nothing_behind(tmp_path: Path) -> None:
    with (
        pytest.raises(KeyboardInterrupt),
        servers.started(command(tmp_path), tmp_path / "log") as server,
    ):
        server.url()
        raise KeyboardInterrupt
    assert becomes(engine(tmp_path), None)


def test_a_server_that_dies_is_quoted(tmp_path: Path) -> None:
    log = tmp_path / "log"
    with (
        servers.started(command(tmp_path, "--die"), log) as server,
        pytest.raises(ServerError, match=r"status 1(?s:.*)out of memory, says the script(?s:.*)log"),
    ):
        server.url()


def test_waiting_has_an_end(tmp_path: Path) -> None:
    idle = [sys.executable, "-c", "import time; time.sleep(60)"]
    with (
        servers.started(idle, tmp_path / "log") as server,
        pytest.raises(ServerError, match="not ready in time"),
    ):
        server.url(deadline_s=0.0)
