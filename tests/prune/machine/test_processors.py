import os
from pathlib import Path

import pytest

from twofour.prune.machine import control_groups
from twofour.prune.machine.processors import usable_cores, usable_cpus


def machine(root: Path, siblings: dict[int, str]) -> Path:
    for cpu, text in siblings.items():
        (root / f"cpu{cpu}" / "topology").mkdir(parents=True)
        (root / f"cpu{cpu}" / "topology" / "thread_siblings_list").write_text(text + "\n")
    return root


HYPERTHREADS = {0: "0,4", 1: "1,5", 2: "2,6", 3: "3,7", 4: "0,4", 5: "1,5", 6: "2,6", 7: "3,7"}
NEIGHBOURS = {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}


@pytest.mark.parametrize(
    ("siblings", "allowed", "quota", "cpus", "cores"),
    [
        (HYPERTHREADS, range(8), None, [0, 1, 2, 3, 4, 5, 6, 7], 4),
        (NEIGHBOURS, range(4), None, [0, 2, 1, 3], 2),
        (NEIGHBOURS, range(4), 2.5, [0, 2], 2),
        (NEIGHBOURS, range(4), 3.0, [0, 2, 1], 2),
        (NEIGHBOURS, range(4), 0.5, [0], 1),
        (NEIGHBOURS, [1, 2, 3], None, [1, 2, 3], 2),
        (HYPERTHREADS, [0, 4, 5], None, [0, 5, 4], 2),
        ({}, range(3), None, [0, 1, 2], 3),  # the system does not tell
    ],
)
def test_cores_come_before_their_hardware_threads(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    siblings: dict[int, str],
    allowed: list[int],
    quota: float | None,
    cpus: list[int],
    cores: int,
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(allowed), raising=False)
    monkeypatch.setattr(control_groups, "cpus", lambda: quota)
    root = machine(tmp_path, siblings)
    assert usable_cpus(root) == cpus
    assert usable_cores(root) == cores


def test_this_machine() -> None:
    assert 1 <= usable_cores() <= len(usable_cpus()) <= (os.cpu_count() or 1)
