import os
import subprocess
import sys
from pathlib import Path

import pytest

from twofour.prune.machine.contention import kept_waiting_s


def system(root: Path, waits: dict[str, str], stat: str) -> Path:
    for thread, text in waits.items():
        (root / "self" / "task" / thread).mkdir(parents=True)
        (root / "self" / "task" / thread / "schedstat").write_text(text)
    (root / "stat").write_text(stat)
    return root


def test_the_waits_of_all_threads_and_what_was_stolen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 2}, raising=False)
    monkeypatch.setattr(os, "sysconf", lambda _: 100)
    stat = "cpu 1 1 1 1 1 1 1 900\ncpu0 1 1 1 1 1 1 1 30 0 0\ncpu1 1 1 1 1 1 1 1 500\ncpu2 1 1 1 1 1 1 1 20\nintr 5\n"
    root = system(tmp_path, {"7": "100 1500000000 3\n", "8": "100 250000000 3\n"}, stat)
    assert kept_waiting_s(root) == pytest.approx(1.75 + 0.5)


@pytest.mark.parametrize("text", ["", "no numbers", "0 0 0"])
def test_a_system_that_does_not_tell_counts_as_quiet(tmp_path: Path, text: str) -> None:
    assert kept_waiting_s(system(tmp_path, {"7": text}, "cpu0 1 2\n")) == 0
    assert kept_waiting_s(tmp_path / "nothing") == 0


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the system does not tell")
def test_two_on_one_core_wait_for_each_other() -> None:
    code = f"""
import os, threading, time
os.sched_setaffinity(0, {{min(os.sched_getaffinity(0))}})
from twofour.prune.machine.contention import kept_waiting_s
before = kept_waiting_s()
end = time.monotonic() + 0.3
other = __import__("subprocess").Popen([{sys.executable!r}, "-c", "while True: pass"])
while time.monotonic() < end: pass
waited = kept_waiting_s() - before
other.kill(); other.wait()
print(waited)
"""
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(found.stdout) > 0.02
