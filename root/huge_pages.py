"""Weights in huge pages: on a machine that has run for long, memory is read up to twice as fast in them.

Linux gives them to whoever asks (`madvise`), and glibc asks where `GLIBC_TUNABLES` told it to before the process
began. So a command starts itself again, once, with that setting; the processes that it starts inherit it.
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")  # always, madvise or never, one in brackets
TUNABLE = "glibc.malloc.hugetlb"


def adopt() -> None:
    """Replace this process by itself with huge pages, where that is possible and not so already."""
    setting = SETTING.read_text() if SETTING.is_file() else ""
    changed = environment(os.environ, setting)
    if changed is not None:
        os.execve(sys.executable, sys.orig_argv, changed)


def environment(current: Mapping[str, str], setting: str) -> dict[str, str] | None:
    """What to start again with; None: as it is, be it that nobody has to ask or that asking is in vain."""
    tunables = current.get("GLIBC_TUNABLES", "")
    if "[madvise]" not in setting or TUNABLE in tunables:
        return None
    return {**current, "GLIBC_TUNABLES": ":".join(filter(None, [tunables, f"{TUNABLE}=1"]))}
