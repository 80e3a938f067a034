"""What memory there is: what the system says is free, what control groups allow, and what the process has."""

import os
from pathlib import Path

import pytest
import torch

from twofour.prune.machine import available, control_groups

GIB = 1 << 30
STAT = "active_file {0}\ninactive_file {0}\ntotal_active_file {1}\ntotal_inactive_file {1}\n"


@pytest.fixture
def system(tmp_path: Path) -> Path:
    """8 GiB, 5 of them free, 1 of this process; no control groups."""
    (tmp_path / "self").mkdir()
    (tmp_path / "meminfo").write_text(
        f"MemTotal:       {8 << 20} kB\nMemFree:  {1 << 20} kB\nMemAvailable:  {5 << 20} kB\nHugePages_Total:  0\n"
    )
    (tmp_path / "self" / "status").write_text(f"Name:\tpython\nVmRSS:\t{3 << 19} kB\nRssAnon:\t{1 << 20} kB\n")
    (tmp_path / "self" / "cgroup").write_text("0::/\n")
    return tmp_path


def write_group(place: Path, files: tuple[str, str, str], limit: str, used: int, of_files: int) -> None:
    """Of version 1, memory.stat has what is the group's own, and in total."""
    place.mkdir(parents=True, exist_ok=True)
    (place / files[0]).write_text(f"{limit}\n")
    (place / files[1]).write_text(f"{used}\n")
    own = 0 if files[2] else of_files // 2
    (place / "memory.stat").write_text(f"anon {used - of_files}\n" + STAT.format(own, of_files // 2))


def test_it_is_what_is_free_and_what_the_process_has(system: Path, tmp_path: Path) -> None:
    assert available.host_bytes(system, tmp_path / "none") == 6 * GIB
    (system / "self" / "status").write_text(f"VmRSS:\t{3 << 19} kB\n")
    assert available.host_bytes(system, tmp_path / "none") == 6.5 * GIB
    (system / "self" / "cgroup").unlink()
    assert available.host_bytes(system, tmp_path / "none") == 6.5 * GIB


def test_it_is_all_there_is_where_nobody_says_what_is_free(tmp_path: Path) -> None:
    assert available.host_bytes(tmp_path) == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


@pytest.mark.parametrize(
    ("lines", "group", "files", "limit", "expected"),
    [
        ("0::/a/b", "a/b", control_groups.V2, str(4 * GIB), 3 * GIB),  # 4, less 3 in use, of which 1 is files; and own
        ("0::/a/b", "a", control_groups.V2, str(4 * GIB), 3 * GIB),  # of a group around it
        ("0::/a/b", "", control_groups.V2, str(4 * GIB), 3 * GIB),  # in a container
        ("0::/a/b", "a/b", control_groups.V2, "max", 6 * GIB),
        ("0::/a/b", "a/c", control_groups.V2, str(4 * GIB), 6 * GIB),
        ("3:cpu,memory:/a\n0::/", "memory/a", control_groups.V1, str(4 * GIB), 3 * GIB),
        ("3:cpu:/a", "memory/a", control_groups.V1, str(4 * GIB), 6 * GIB),
        ("0::/a", "a", control_groups.V2, str(1 * GIB), 1 * GIB),  # more in use than is allowed now
    ],
)
def test_control_groups_allow_less(
    system: Path, tmp_path: Path, lines: str, group: str, files: tuple[str, str, str], limit: str, expected: int
) -> None:
    (system / "self" / "cgroup").write_text(lines + "\n")
    write_group(tmp_path / "groups" / group, files, limit, 3 * GIB, GIB)
    assert available.host_bytes(system, tmp_path / "groups") == expected


def test_a_gpu_has_what_is_free_and_what_torch_does_not_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * GIB, 24 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 3 * GIB)
    monkeypatch.setattr(torch.cuda, "memory_allocated", lambda device: 2 * GIB)
    assert available.device_bytes("cuda") == 6 * GIB
