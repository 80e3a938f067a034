"""A supervisor's socket, and what a server has said to it (sd_notify)."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def listening(folder: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as bound:
        bound.bind(str(folder / "notify"))
        bound.settimeout(60)
        yield bound


def next_word(supervisor: socket.socket) -> str:
    supervisor.settimeout(60)
    return supervisor.recv(64).decode()


def told(supervisor: socket.socket) -> list[str]:
    """All that has come and was not read."""
    words = []
    supervisor.setblocking(False)
    with suppress(BlockingIOError):
        while True:
            words.append(supervisor.recv(64).decode())
    return words
