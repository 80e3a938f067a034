"""The limits that control groups, version 2 and 1, set on this process: of containers and of job schedulers.

A limit may stand in the group of the process or in any above it. A container sees its own group as the root, whatever
its path says, so groups that are not there are passed over.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

OWN, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


class Memory(NamedTuple):
    """Bytes of one group."""

    limit: int  # version 1 gives a vast number where there is no limit
    left: int  # what it still allows; pages of files are free, for the system drops them where it needs memory


class _Names(NamedTuple):
    limit: str
    usage: str
    prefix: str  # of the counts in memory.stat that include groups below


V2 = _Names("memory.max", "memory.current", "")
V1 = _Names("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


def cpus(own: Path = OWN, groups: Path = GROUPS) -> float | None:
    """How many CPUs' worth of time the lowest quota gives; None: no limit."""
    found = list[float]()
    for group in _groups("cpu", own, groups):
        with suppress(OSError, ValueError):  # no such file, or "max"
            found.append(_cpus(group))
    return min(found, default=None)


def memory(own: Path = OWN, groups: Path = GROUPS) -> list[Memory]:
    """Return the memory of each group that limits it."""
    found = list[Memory]()
    for group in _groups("memory", own, groups):
        names = V2 if (group / V2.limit).exists() else V1
        with suppress(OSError, ValueError):
            limit = int((group / names.limit).read_text())
            found.append(Memory(limit, limit - int((group / names.usage).read_text()) + _files(group, names.prefix)))
    return found


def _cpus(group: Path) -> float:
    if (group / "cpu.max").exists():
        quota, period = (group / "cpu.max").read_text().split()
    else:
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    if int(quota) < 0:
        raise ValueError("no limit")
    return int(quota) / int(period)


def _files(group: Path, prefix: str) -> int:
    """Return the bytes of pages of files, which can be dropped and read again."""
    counts = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    names = (f"{prefix}inactive_file", f"{prefix}active_file", "slab_reclaimable")
    return sum(int(counts.get(name, 0)) for name in names)


def _groups(controller: str, own: Path, groups: Path) -> Iterator[Path]:
    """Yield the groups that this process is in, each with those above it. A line is `number:controllers:path`."""
    lines = own.read_text().splitlines() if own.is_file() else []
    for number, controllers, path in (line.split(":", 2) for line in lines):
        if number == "0":
            tops = [groups]
        elif controller in controllers.split(","):
            tops = [groups / controllers, groups / controller]  # the second is often a link to the first
        else:
            continue
        for top in tops:
            group = top / path.lstrip("/")
            yield from (each for each in (group, *group.parents) if each == top or top in each.parents)
