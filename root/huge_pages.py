"""Weights in huge pages: on a machine that has run for a long time, memory in them is read up to twice as fast.

Linux gives them to programs that ask (`madvise`), and glibc asks if `GLIBC_TUNABLES` said so when the process began. So
a command starts itself again, once, with that setting; the processes that it starts inherit it.
"""

import os
import signal
import sys
from collections.abc import Mapping
from pathlib import Path

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # always, madvise or never, one in brackets
TUNABLE = "glibc.malloc.hugetlb"


def adopt() -> None:
    """Start this process again, with huge pages, if that is possible and has not been done."""
    setting = SETTING.read_text() if SETTING.is_file() else ""
    changed = environment(os.environ, setting)
    if changed is not None:
        # While Python starts, an interrupt would end it with a trace.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        os.execve(sys.executable, sys.orig_argv, changed)


def hear_interrupts() -> None:
    """An interrupt that came while the process started again comes now."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def environment(current: Mapping[str, str], setting: str) -> dict[str, str] | None:
    """The environment to start again with. None: stay, since it is set already, not needed, or not possible."""
    tunables = current.get("GLIBC_TUNABLES", "")
    if "[madvise]" not in setting or TUNABLE in tunables:
        return None
    return {**current, "GLIBC_TUNABLES": ":".join(filter(None, [tunables, f"{TUNABLE}=1"]))}
