"""The ceiling: how fast this machine moves memory, and so how fast a weight can be multiplied at best.

Up to about a hundred tokens a multiplication does little with each weight but read it. So its time is at least
the bytes of the weight over the bandwidth, and what a format buys is at most the ratio of the bytes:

    bytes per weight    dense bf16 2    dense int8 1    2:4 bf16 1.125    2:4 int8 0.625
                                                        (16 + 2 bits) / 2 (8 + 2 bits) / 2

Memory in huge pages can be read up to twice as fast as in ordinary ones that lie scattered, as on a machine that has
run for long. Both are measured, and the faster is the ceiling: a weight in ordinary pages may stay far below it.
"""

import mmap
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

BYTES_PER_WEIGHT = {"dense bf16": 2.0, "dense int8": 1.0, "2:4 bf16": 1.125, "2:4 int8": 0.625}
CACHES = Path("/sys/devices/system/cpu/cpu0/cache")
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # always, madvise or never, one in brackets
LEAST_BUFFER_BYTES, MOST_BUFFER_BYTES = 1 << 28, 1 << 30
PASSES = 9
AHEAD_BYTES = (0, 4096, 8192)  # how far to prefetch; which is best differs between processors
_UNITS = {"K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


@dataclass(frozen=True)
class Ceiling:
    """`seconds`: of each pass over `nbytes`. A copy moves every byte twice: `nbytes` counts both."""

    method: str
    nbytes: int
    seconds: tuple[float, ...]

    @property
    def bytes_per_s(self) -> float:
        return self.nbytes / median(self.seconds)

    def facts(self) -> dict[str, Any]:
        """Plain data for a document."""
        return {"bytes_per_s": self.bytes_per_s, "method": self.method, "bytes": self.nbytes}

    def best_s(self, weight_bytes: float) -> float:
        """The least time to multiply by a weight of that many bytes."""
        return weight_bytes / self.bytes_per_s


def clock(threads: int) -> Callable[[], float]:
    """One thread by its CPU time, which neighbours do not lengthen; more by the wall clock."""
    return time.thread_time if threads == 1 else time.perf_counter


def read_ceilings(threads: int, cache_bytes: int | None) -> list[Ceiling]:
    """Read much more than the last-level cache holds, from ordinary pages and, where there are any, from huge ones."""
    import torch

    nbytes = min(max(LEAST_BUFFER_BYTES, 4 * (cache_bytes or 0)), MOST_BUFFER_BYTES)
    found = [_read("read of ordinary pages", torch.empty(nbytes, dtype=torch.uint8), threads)]
    setting = _text(HUGE_PAGES)
    if not setting or "[never]" in setting:
        return found
    region = mmap.mmap(-1, nbytes)
    region.madvise(mmap.MADV_HUGEPAGE)
    return [*found, _read("read of huge pages", torch.frombuffer(region, dtype=torch.uint8), threads)]


def _read(method: str, buffer: "Tensor", threads: int) -> Ceiling:
    """Take the best way of prefetching."""
    from twofour.serve.kernels.cpu.weight import require

    read, now = require().read_memory, clock(threads)
    buffer.fill_(1)  # untouched pages are all one page of zeros

    def seconds(ahead: int) -> float:
        started = now()
        read(buffer.data_ptr(), buffer.nbytes, ahead, threads)
        return now() - started

    seconds(0)  # wakes the threads
    passes = [[seconds(ahead) for ahead in AHEAD_BYTES] for _ in range(PASSES)]
    return Ceiling(method, buffer.nbytes, min((tuple(way) for way in zip(*passes, strict=True)), key=median))


def highest(ceilings: Sequence[Ceiling]) -> Ceiling:
    """What the machine was seen to be capable of."""
    return max(ceilings, key=lambda ceiling: ceiling.bytes_per_s)


def last_level_cache_bytes(caches: Path = CACHES) -> int | None:
    """None where the system does not say."""
    found = [
        (int(_text(index / "level")), size_bytes(_text(index / "size")))
        for index in caches.glob("index*")
        if _text(index / "type") != "Instruction" and _text(index / "level") and _text(index / "size")
    ]
    return max(found)[1] if found else None


def size_bytes(text: str) -> int:
    """32768K, as sysfs spells sizes."""
    return int(text[:-1]) * _UNITS[text[-1]] if text[-1] in _UNITS else int(text)


def _text(path: Path) -> str:
    return path.read_text().strip() if path.is_file() else ""
