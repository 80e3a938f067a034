"""How the allocator of the C library treats large tensors. Only glibc has these settings; elsewhere nothing is done.

By default glibc asks the system for new pages for every large tensor, and returns them when it is freed. The system
clears each page before its first use: a third of the time of a training step of a small model on two cores.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # M_TRIM_THRESHOLD and so on of malloc.h
LARGE = 1 << 20  # bytes: buffers of a large request, not the many small objects
REUSE = {TRIM_THRESHOLD: -1, MMAP_MAX: 0}  # see mallopt(3): never return free memory, never map a tensor by itself
# mallopt has no way back to "as found": these are the values that glibc reaches on its own. Its threshold for mapping
# grows with the largest block freed, to 32 MiB at most (DEFAULT_MMAP_THRESHOLD_MAX on 64 bits), and that for trimming
# is twice as much; 65536 is its default (DEFAULT_MMAP_MAX).
DEFAULTS = {TRIM_THRESHOLD: 64 << 20, MMAP_THRESHOLD: 32 << 20, MMAP_MAX: 65536}


def give_back() -> None:
    """Return freed memory to the system: glibc keeps most of it, hundreds of MB after some batches."""
    trim = _function("malloc_trim")
    if trim:
        trim(0)


def map_large() -> None:
    """Return large tensors to the system as soon as they are freed: for processes that live long and seldom need much.

    By default glibc stops doing so after the first few.
    """
    _set({MMAP_THRESHOLD: LARGE})


@contextmanager
def reused() -> Iterator[None]:
    """Let new tensors use the memory of those freed before; at the end, free memory is returned to the system."""
    _set(REUSE)
    try:
        yield
    finally:
        _set(DEFAULTS)
        give_back()


def _set(options: Mapping[int, int]) -> None:
    mallopt = _function("mallopt")
    if mallopt:
        for option, value in options.items():
            mallopt(option, value)


def _function(name: str) -> Callable[..., Any] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
