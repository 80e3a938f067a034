"""The memory that a machine has for an engine: what it could have, and what is free of it now.

The first decides how large the cache is, so that the same flags on the same machine give the same cache at every start,
whatever files were read before. The second decides only whether that can be had. Both within the control groups of this
process, of version 2 or 1; what they keep of files is free, since it is given up where memory is asked for.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

GPU_OWN = 1 << 30  # of a GPU's memory, for the driver, the code of kernels and what they work in


@dataclass(frozen=True)
class Memory:
    """Bytes of one device."""

    beside_weights: int  # all but the weights
    free: int  # now, the weights loaded


def memory_of(device: torch.device, weight_bytes: int) -> Memory:
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what loading no longer needs
        free, total = torch.cuda.mem_get_info(device)
        return Memory(total - GPU_OWN - weight_bytes, free)
    return Memory(cpu_bytes() - weight_bytes, free_cpu_bytes())


def cpu_bytes() -> int:
    """All the memory of the machine, or what the control groups of this process may have of it."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *(limit for limit, _ in group_bytes())])


def free_cpu_bytes() -> int:
    """Memory that can be had without swapping."""
    with suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
        return min([*free, *(left for _, left in group_bytes())], default=cpu_bytes())
    return cpu_bytes()


def group_bytes(
    own: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")
) -> Iterator[tuple[int, int]]:
    """The limits of the control groups of this process and what they leave; a container sees its own as the root."""
    with suppress(OSError):
        for line in own.read_text().splitlines():
            number, kinds, path = line.split(":", 2)
            if number == "0":
                yield from _left(groups, path, "memory.max", "memory.current", "")
            elif "memory" in kinds.split(","):
                yield from _left(groups / "memory", path, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")


def _left(root: Path, path: str, limit: str, usage: str, prefix: str) -> Iterator[tuple[int, int]]:
    place = root / path.lstrip("/")
    for each in (place, *place.parents):
        if each.is_relative_to(root):
            with suppress(OSError, ValueError):  # no such group, or one without a limit
                allowed = int((each / limit).read_text())
                yield allowed, allowed - int((each / usage).read_text()) + _files(each, prefix)


def _files(place: Path, prefix: str) -> int:
    """Bytes in a group that stand for files and can be read again."""
    counts = dict(line.split() for line in (place / "memory.stat").read_text().splitlines())
    names = (f"{prefix}inactive_file", f"{prefix}active_file", "slab_reclaimable")
    return sum(int(counts.get(name, 0)) for name in names)
