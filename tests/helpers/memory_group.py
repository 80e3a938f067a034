"""A control group with a limit of memory, of version 2 or 1, made by a test for the processes that it starts."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
from processes import soon

V2, V1 = Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/memory")


class MemoryGroup:
    def __init__(self, folder: Path) -> None:
        self._folder, self._is_v1 = folder, (folder / "memory.limit_in_bytes").exists()

    def limit(self, size: int) -> None:
        """Of version 1, only a limit that holds already can be set; swap is not kept from it."""
        (self._folder / ("memory.limit_in_bytes" if self._is_v1 else "memory.max")).write_text(str(size))
        with suppress(OSError):  # no such file in version 1, or without swap
            (self._folder / "memory.swap.max").write_text("0")

    def enter(self) -> None:
        """Put the calling process in, between fork and exec."""
        (self._folder / "cgroup.procs").write_text(str(os.getpid()))

    @property
    def used(self) -> int:
        """Bytes, without pages of files, which the system drops where it needs memory."""
        counts = self._counts("memory.stat")
        return counts["total_rss"] if self._is_v1 else counts["anon"]

    @property
    def kills(self) -> int:
        """How often the kernel has killed a process of it."""
        return self._counts("memory.oom_control" if self._is_v1 else "memory.events")["oom_kill"]

    def _counts(self, file: str) -> dict[str, int]:
        lines = (self._folder / file).read_text().splitlines()
        return {name: int(count) for name, count in map(str.split, lines)}


@contextmanager
def memory_group(name: str) -> Iterator[MemoryGroup]:
    """It is removed when the last process has left it."""
    folder = (V1 if V1.is_dir() else V2) / f"twofour-{name}-{os.getpid()}"
    try:
        folder.mkdir()
        missing = not any((folder / file).exists() for file in ("memory.max", "memory.limit_in_bytes"))
    except OSError as error:
        pytest.fail(f"no control group can be made here ({error}); run this as root on a Linux that allows it")
    try:
        if missing:
            pytest.fail(f"{folder} has no limit of memory; add +memory to {folder.parent}/cgroup.subtree_control")
        yield MemoryGroup(folder)
    finally:
        soon(lambda: not (folder / "cgroup.procs").read_text())
        folder.rmdir()
