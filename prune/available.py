"""What memory a run can have: what is free when it is asked for, and what this process holds already."""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_")  # limit, use, and the prefix of memory.stat
V2 = ("memory.max", "memory.current", "")


def host_bytes(system: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """The memory that this process can have, also by its control groups; where nothing is known of it, all there is."""
    if not (system / "meminfo").exists():  # no Linux
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    own = _bytes_of(system / "self" / "status")
    available = _bytes_of(system / "meminfo")["MemAvailable"]
    free = min([available, *_free_in_groups(system / "self" / "cgroup", groups)])
    return max(0, free) + (own.get("RssAnon") or own["VmRSS"])  # gVisor has no RssAnon


def _bytes_of(file: Path) -> dict[str, int]:
    lines = (line.split() for line in file.read_text().splitlines() if line.endswith(" kB"))
    return {name.rstrip(":"): int(kib) << 10 for name, kib, _ in lines}


def _free_in_groups(own: Path, groups: Path) -> Iterator[int]:
    """What the control groups of this process, of version 2 or 1, still allow; a container sees its own as the root."""
    with suppress(OSError):
        for line in own.read_text().splitlines():
            number, kinds, path = line.split(":", 2)
            root, files = (groups, V2) if number == "0" else (groups / "memory", V1)
            if number == "0" or "memory" in kinds.split(","):
                place = root / path.lstrip("/")
                for each in (place, *place.parents):
                    if each.is_relative_to(root):
                        with suppress(OSError, ValueError):  # no such file, or "max"
                            yield _free_in(each, *files)


def _free_in(group: Path, limit: str, use: str, prefix: str) -> int:
    """What a group still allows: pages of files count as used, and go when there is need."""
    stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    files = sum(int(stat[f"{prefix}{kind}_file"]) for kind in ("active", "inactive"))
    return int((group / limit).read_text()) - (int((group / use).read_text()) - files)


def device_bytes(device: str) -> int:
    """The memory of a GPU that this process can have."""
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch's allocator
    free: int = torch.cuda.mem_get_info(device)[0]
    return free + unused
