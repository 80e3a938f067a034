"""What its control groups leave a process of the machine: containers and job schedulers limit by them. Version 2 and 1.

A limit may stand in the group of the process or in any above it; the lowest counts. A container sees its own group as
the root, whatever its path says, so groups that are not there are passed over.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

OWN, GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")

T = TypeVar("T", int, float)


def cpus(own: Path = OWN, groups: Path = GROUPS) -> float | None:
    """How many CPUs' worth of time; None: no limit."""
    return min(_limits("cpu", _cpus, own, groups), default=None)


def memory_bytes(own: Path = OWN, groups: Path = GROUPS) -> int | None:
    """None: no limit. One of version 1 that is none may be a vast number."""
    return min(_limits("memory", _memory_bytes, own, groups), default=None)


def _cpus(group: Path) -> float:
    if (group / "cpu.max").exists():
        quota, period = (group / "cpu.max").read_text().split()
    else:
        quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
    if int(quota) < 0:
        raise ValueError("no limit")
    return int(quota) / int(period)


def _memory_bytes(group: Path) -> int:
    file = "memory.max" if (group / "memory.max").exists() else "memory.limit_in_bytes"
    return int((group / file).read_text())


def _limits(controller: str, read: Callable[[Path], T], own: Path, groups: Path) -> Iterator[T]:
    for group in _groups(controller, own, groups):
        with suppress(OSError, ValueError):  # no such file, or "max"
            yield read(group)


def _groups(controller: str, own: Path, groups: Path) -> Iterator[Path]:
    """The groups that this process is in, each with those above it. A line is `number:controllers:path`."""
    lines = own.read_text().splitlines() if own.is_file() else []
    for number, controllers, path in (line.split(":", 2) for line in lines):
        if number == "0":
            tops = [groups]
        elif controller in controllers.split(","):
            tops = [groups / controllers, groups / controller]  # a link to the former, where there is one
        else:
            continue
        for top in tops:
            group = top / path.lstrip("/")
            yield from (each for each in (group, *group.parents) if each == top or top in each.parents)
