from pathlib import Path

import pytest

from twofour.bench import control_groups


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
    ("groups", "files", "limit"),
    [
        ("0::/a/b\n", {"a/b/memory.max": "max\n", "a/memory.max": "4096\n", "memory.max": "8192\n"}, 4096),
        (V1, {"memory/a/b/memory.limit_in_bytes": "4096\n"}, 4096),
        (V1, {"cpu,cpuacct/a/b/memory.limit_in_bytes": "4096\n"}, None),
        ("0::/\n", {}, None),
    ],
)
def test_the_lowest_limit_of_memory(groups: str, files: dict[str, str], limit: int | None, tmp_path: Path) -> None:
    assert control_groups.memory_bytes(*written(tmp_path, groups, files)) == limit


def test_where_there_are_none(tmp_path: Path) -> None:
    assert control_groups.cpus(tmp_path / "none", tmp_path) is None
