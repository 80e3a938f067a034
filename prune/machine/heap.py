"""How the C library's allocator deals with large tensors, which page faults pay for.

By itself the GNU allocator maps every large tensor anew and unmaps it when it is freed, so each of its pages is faulted
in and cleared by the system again and again: of a training step of a small model on two cores that is a third.
"""

import ctypes
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX = -1, -3, -4  # malloc.h
LARGE = 1 << 20
REUSE = {TRIM_THRESHOLD: -1, MMAP_MAX: 0}  # never, none
AS_EVER = {TRIM_THRESHOLD: 64 << 20, MMAP_THRESHOLD: 32 << 20, MMAP_MAX: 65536}  # where it ends up by itself


def give_back() -> None:
    """Hand freed memory back to the system: the GNU allocator keeps most of it, hundreds of MB after some batches."""
    trim = _function("malloc_trim")
    if trim:
        trim(0)


def map_large() -> None:
    """Map anew whatever is large, so that the system has it back when it is freed: for processes that live for long and
    seldom need much. By itself the GNU allocator stops that after the first few times."""
    _set({MMAP_THRESHOLD: LARGE})


@contextmanager
def reused() -> Iterator[None]:
    """Let tensors have the memory of those before them; what is free at the end is given back. Only of the GNU kind."""
    _set(REUSE)
    try:
        yield
    finally:
        _set(AS_EVER)
        give_back()


def _set(options: Mapping[int, int]) -> None:
    mallopt = _function("mallopt")
    if mallopt:
        for option, value in options.items():
            mallopt(option, value)


def _function(name: str) -> Callable[..., Any] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
