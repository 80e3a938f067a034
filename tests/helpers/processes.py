"""What other processes do, from Linux's /proc, and waiting for it."""

import time
from collections.abc import Callable
from pathlib import Path


def soon(true: Callable[[], bool], limit_s: float = 10.0) -> bool:
    """Whether something becomes true; the time is a limit, not a measure."""
    end_at = time.monotonic() + limit_s
    while not true():
        if time.monotonic() > end_at:
            return False
        time.sleep(0.01)
    return True


def state(pid: int) -> str | None:
    """R, S, T, ...; None when it is gone, or only waits to be collected, as an orphan does where there is no init."""
    try:
        found = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if found == "Z" else found


def alive(pid: int) -> bool:
    return state(pid) is not None
