"""Whether others keep the threads of this process from their cores."""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

SYSTEM = Path("/proc")
STEAL = 7  # which of the numbers of a CPU in /proc/stat: ticks that other guests of the host had
BUSY = 0.05  # of a measurement: threads that others kept waiting for longer have measured those others


class Measurement:
    """A time, from now on, in which something is measured."""

    def __init__(self) -> None:
        self._started, self._waited = time.perf_counter(), kept_waiting_s()

    @property
    def seconds(self) -> float:
        return time.perf_counter() - self._started

    def was_disturbed(self) -> bool:
        """Whether others kept the threads of this process waiting for much of it."""
        return kept_waiting_s() - self._waited > BUSY * self.seconds


def kept_waiting_s(system: Path = SYSTEM) -> float:
    """Seconds so far in which threads of this process were ready to run and something else ran on their cores.

    That is other processes, or other guests of the host. 0 where the system does not tell.
    """
    return sum(_waits(system)) + sum(_steals(system))


def _waits(system: Path) -> Iterator[float]:
    """Of each thread: the second word of its schedstat, in nanoseconds."""
    for thread in (system / "self" / "task").glob("*/schedstat"):
        with suppress(OSError, ValueError, IndexError):  # it has ended meanwhile
            yield int(thread.read_text().split()[1]) / 1e9


def _steals(system: Path) -> Iterator[float]:
    """Of each CPU that this process may run on."""
    if not hasattr(os, "sched_getaffinity") or not (system / "stat").exists():
        return
    allowed = {f"cpu{number}" for number in os.sched_getaffinity(0)}
    for name, *ticks in map(str.split, (system / "stat").read_text().splitlines()):
        if name in allowed and len(ticks) > STEAL:
            yield int(ticks[STEAL]) / os.sysconf("SC_CLK_TCK")
