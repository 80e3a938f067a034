"""Servers at rest: a process group stands still while another server is measured, and is waited for when it goes on.

A frozen group (SIGSTOP) takes no CPU from the others. It has the number of its first process.
"""

import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from twofour.bench.load.endpoint import Endpoint

THAW_S = 60.0
POLL_S = 0.05


def signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to a process group, which may be gone already."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def freeze(group: int) -> None:
    signal_group(group, signal.SIGSTOP)


def thaw(group: int) -> None:
    signal_group(group, signal.SIGCONT)


@contextmanager
def frozen(groups: Sequence[int]) -> Iterator[None]:
    """Freeze groups for the length of a `with` block; all go on in the end, whatever happens."""
    try:
        for group in groups:
            freeze(group)
        yield
    finally:
        for group in groups:
            thaw(group)


@contextmanager
def awake(group: int, endpoint: Endpoint, give_up: Callable[[bool], None]) -> Iterator[None]:
    """Let a frozen group go on for the length of a `with` block, which begins when its server is ready again."""
    thaw(group)
    try:
        wait_until_ready(endpoint, time.monotonic() + THAW_S, give_up)
        yield
    finally:
        freeze(group)


def wait_until_ready(endpoint: Endpoint, until: float, give_up: Callable[[bool], None]) -> None:
    """`give_up` is called between two looks, with whether `until` has passed; it raises where waiting is no use."""
    while not endpoint.ready():
        give_up(time.monotonic() > until)
        time.sleep(POLL_S)
