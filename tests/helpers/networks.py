"""Work in the network of another process, such as that of a container, which has a loopback of its own."""

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")
NETWORK = 0x40000000  # CLONE_NEWNET


def in_network_of(pid: int, work: Callable[[], T]) -> T:
    """Do something in a thread that is in the network of a process, as are the sockets that it opens."""

    def entered() -> T:
        with open(f"/proc/{pid}/ns/net") as network:
            assert ctypes.CDLL(None, use_errno=True).setns(network.fileno(), NETWORK) == 0, ctypes.get_errno()
        return work()

    with ThreadPoolExecutor(1) as thread:
        return thread.submit(entered).result()
