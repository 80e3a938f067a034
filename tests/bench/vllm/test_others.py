"""What others take of the CPUs is all that is busy, less the group that is measured."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from twofour.bench.vllm import others
from twofour.bench.vllm.others import Others

SECOND = os.sysconf("SC_CLK_TCK")


def system(tmp_path: Path, busy: int, own: int) -> Path:
    """A /proc of two processes: one of group 7, whose name has brackets, and one of another."""
    (tmp_path / "stat").write_text(f"cpu  {busy} 0 0 1000 50 0 0 0 9 9\ncpu0 1 1 1\n")
    for pid, group, ticks in ((7, 7, own), (8, 7, own), (9, 9, 500)):
        (tmp_path / str(pid)).mkdir(exist_ok=True)
        (tmp_path / str(pid) / "stat").write_text(f"{pid} (a ) b) S 1 {group} 1 0 -1 0 0 0 0 0 {ticks} 0 0 0 20\n")
    return tmp_path


@pytest.fixture
def ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([100.0, 110.0])
    monkeypatch.setattr(others.time, "perf_counter", lambda: next(moments))
    monkeypatch.setattr(os, "cpu_count", lambda: 2)


def test_the_share_is_of_all_cpus_without_the_group(tmp_path: Path, ten_seconds: None) -> None:
    watched = Others(7, system(tmp_path, busy=100, own=10))
    system(tmp_path, busy=100 + 9 * SECOND, own=10 + 2 * SECOND)  # both of the group ran for two seconds
    assert watched.share() == pytest.approx((9 - 4) / 10 / 2)


def test_where_the_system_does_not_tell_there_is_no_share(tmp_path: Path) -> None:
    assert Others(7, tmp_path).share() is None


@pytest.mark.skipif(not others.SYSTEM.is_dir(), reason="no /proc here")
def test_a_group_of_this_machine_is_found() -> None:
    spin = "import time\nwhile time.process_time() < 0.2: pass\nprint(flush=True)\ninput()"
    with subprocess.Popen(
        [sys.executable, "-c", spin], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        assert process.stdout and process.stdin
        process.stdout.readline()
        assert sum(Others(process.pid)._of_group()) >= 0.2 * SECOND - 2
        process.stdin.close()
