"""What others take of the machine while one process group works.

Threads of vLLM wait for each other's processors where they are as many as the CPUs, so that something waits says
nothing here. The time of all CPUs, less that of the group, is what others took.
"""

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

SYSTEM = Path("/proc")
IDLE = (3, 4)  # which of the numbers of all CPUs in /proc/stat: idle, and waiting for a disk
GUESTS = 8  # from this on they are part of those before
GROUP, USER, KERNEL = 2, 11, 12  # which of the words after the name in /proc/PID/stat


class Others:
    """From now on. `group` has the number of its first process."""

    def __init__(self, group: int, system: Path = SYSTEM) -> None:
        self._group, self._system = group, system
        self._began, self._before = time.perf_counter(), self._ticks()

    def share(self) -> float | None:
        """Of all CPUs since then; None where the system does not tell."""
        now = self._ticks()
        if now is None or self._before is None:
            return None
        seconds = (now - self._before) / os.sysconf("SC_CLK_TCK")
        return max(seconds / (time.perf_counter() - self._began) / (os.cpu_count() or 1), 0.0)

    def _ticks(self) -> int | None:
        try:
            first = (self._system / "stat").read_text().splitlines()[0].split()[1:]
        except OSError:
            return None
        busy = sum(int(ticks) for at, ticks in enumerate(first[:GUESTS]) if at not in IDLE)
        return busy - sum(self._of_group())

    def _of_group(self) -> Iterator[int]:
        for stat in self._system.glob("[0-9]*/stat"):
            with suppress(OSError):  # it has ended meanwhile
                words = stat.read_text().rpartition(")")[2].split()
                if int(words[GROUP]) == self._group:
                    yield int(words[USER]) + int(words[KERNEL])
