"""How much memory a run can have: what is free now, and what this process holds already."""

import os
from pathlib import Path

from twofour.prune.machine import control_groups

SYSTEM = Path("/proc")


def installed_bytes() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def free_bytes(system: Path = SYSTEM, groups: Path = control_groups.GROUPS) -> int:
    """The memory that is free without swapping and within the control groups; off Linux, all that is installed."""
    if not (system / "meminfo").exists():  # no Linux
        return installed_bytes()
    available = _bytes_of(system / "meminfo")["MemAvailable"]
    return min([available, *(each.left for each in control_groups.memory(system / "self" / "cgroup", groups))])


def host_bytes(system: Path = SYSTEM, groups: Path = control_groups.GROUPS) -> int:
    """The memory that this process can have: what is free, and what it holds."""
    free = free_bytes(system, groups)
    if not (system / "self" / "status").exists():  # no Linux
        return free
    own = _bytes_of(system / "self" / "status")
    return max(0, free) + (own.get("RssAnon") or own["VmRSS"])  # gVisor has no RssAnon


def _bytes_of(file: Path) -> dict[str, int]:
    lines = (line.split() for line in file.read_text().splitlines() if line.endswith(" kB"))
    return {name.rstrip(":"): int(kib) << 10 for name, kib, _ in lines}


def device_bytes(device: str) -> int:
    """The memory of a GPU that this process can have."""
    import torch

    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # by torch's allocator
    free: int = torch.cuda.mem_get_info(device)[0]
    return free + unused
