from pathlib import Path

import pytest

from twofour.prune.machine import control_groups

STAT = "anon 5\ninactive_file 30\nactive_file 200\nslab_reclaimable 1000\nslab_unreclaimable 9"
STAT_1 = "cache 7\ninactive_file 1\nactive_file 1\ntotal_inactive_file 30\ntotal_active_file 200"


def written(folder: Path, groups: str, files: dict[str, str]) -> tuple[Path, Path]:
    """A /proc/self/cgroup and a /sys/fs/cgroup."""
    own, root = folder / "own", folder / "groups"
    own.write_text(groups)
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return own, root


V1 = "4:cpuset:/\n3:cpu,cpuacct:/a/b\n2:memory:/a/b\n0::/x\n"


@pytest.mark.parametrize(
    ("groups", "files", "cpus"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n"}, None),
        ("0::/a/b\n", {"a/b/cpu.max": "400000 100000\n", "a/cpu.max": "200000 100000\n"}, 2.0),  # set above
        ("0::/docker/123\n", {"cpu.max": "300000 100000\n"}, 3.0),  # a container: its own group is the root
        ("0::/../../c\n", {"cpu.max": "300000 100000\n"}, 3.0),
        (V1, {"cpu,cpuacct/a/b/cpu.cfs_quota_us": "50000\n", "cpu,cpuacct/a/b/cpu.cfs_period_us": "20000\n"}, 2.5),
        (V1, {"cpu/cpu.cfs_quota_us": "100000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1.0),
        (V1, {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        (V1, {"cpuset/cpu.cfs_quota_us": "1\n", "cpuset/cpu.cfs_period_us": "1\n"}, None),
        ("", {}, None),
    ],
)
def test_the_lowest_quota_of_the_groups(groups: str, files: dict[str, str], cpus: float | None, tmp_path: Path) -> None:
    assert control_groups.cpus(*written(tmp_path, groups, files)) == cpus


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        ("0::/a/b", {"a/b/memory.max": "4096", "a/b/memory.current": "3000", "a/b/memory.stat": STAT}, [2326]),
        ("0::/a/b", {"a/memory.max": "4096", "a/memory.current": "3000", "a/memory.stat": STAT}, [2326]),
        ("0::/a", {"a/memory.max": "max", "a/memory.current": "3000", "a/memory.stat": STAT}, []),
        ("0::/a/b", {"memory.max": "4096", "memory.current": "4000", "memory.stat": STAT}, [1326]),  # of a container
        (
            "3:cpu,memory:/a\n0::/",
            {
                "memory/a/memory.limit_in_bytes": "4096",
                "memory/a/memory.usage_in_bytes": "4000",
                "memory/a/memory.stat": STAT_1,
            },
            [326],
        ),
        ("3:cpu:/a", {"memory/a/memory.limit_in_bytes": "4096", "memory/a/memory.usage_in_bytes": "9"}, []),
        ("0::/", {}, []),
    ],
)
def test_what_a_group_keeps_of_files_is_free(
    groups: str, files: dict[str, str], free: list[int], tmp_path: Path
) -> None:
    found = control_groups.memory(*written(tmp_path, groups, files))
    assert found == [control_groups.Memory(4096, left) for left in free]


def test_where_there_are_none(tmp_path: Path) -> None:
    assert control_groups.cpus(tmp_path / "none", tmp_path) is None
    assert control_groups.memory(tmp_path / "none", tmp_path) == []
