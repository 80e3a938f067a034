"""How the C library's allocator deals with large tensors, which page faults pay for.

By itself the GNU allocator maps every large tensor anew and unmaps it when it is freed, so each of its pages is faulted
in and cleared by the system again and again: of a training step of a small model on two cores that is a third.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

TRIM_THRESHOLD, MMAP_MAX = -1, -4  # malloc.h
NEVER, NONE = -1, 0
TRIM_BYTES, MMAPS = 128 << 10, 65536  # what they are by themselves


def give_back() -> None:
    """Hand freed memory back to the system: the GNU allocator keeps most of it, hundreds of MB after some batches."""
    trim = _function("malloc_trim")
    if trim:
        trim(0)


@contextmanager
def reused() -> Iterator[None]:
    """Let tensors have the memory of those before them; what is free at the end is given back. Only of the GNU kind."""
    option = _function("mallopt")
    if option is None:
        yield
        return
    option(TRIM_THRESHOLD, NEVER)
    option(MMAP_MAX, NONE)
    try:
        yield
    finally:
        option(TRIM_THRESHOLD, TRIM_BYTES)
        option(MMAP_MAX, MMAPS)
        give_back()


def _function(name: str) -> Callable[..., Any] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
