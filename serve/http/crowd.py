"""Who is connected. There are never more connections than the process may have open files.

At the limit, the client for which the server has waited longest makes room for a new one: a client that sends nothing,
sends its request slowly, or does not read its answer cannot keep others out. If all wait for the server instead, a few
more are let in, and of these only probes are answered.
"""

import logging
import os
import resource
import time
from typing import Protocol

MAX_CONNECTIONS = 4096
SPARE = 16  # beyond the limit, for probes
RESERVED_FILES = 16  # for files opened later: the pipes of the engine, a file to read
SAY_AGAIN_S = 60.0

log = logging.getLogger(__name__)


class Guest(Protocol):
    def turn_out(self) -> None: ...


def raise_open_files() -> None:
    """Allow as many open files as possible: every connection is one, and the usual soft limits are low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # some systems have no hard limit, and refuse an unlimited soft one
        log.warning("no more than %d files can be open: %s", soft, error)


def connection_limit() -> int:
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if files == resource.RLIM_INFINITY:
        return MAX_CONNECTIONS
    return max(1, min(MAX_CONNECTIONS, files - len(os.listdir("/dev/fd")) - RESERVED_FILES - SPARE))


class Crowd:
    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._guests: set[Guest] = set()
        self._waited_for: dict[Guest, None] = {}  # the server waits for these; the longest first
        self._said_at = -SAY_AGAIN_S

    @property
    def over(self) -> bool:
        """Only probes are answered now."""
        return len(self._guests) > self.limit

    def enter(self, guest: Guest) -> bool:
        """False: there is no room, not even for a probe."""
        while len(self._guests) >= self.limit and self.turn_one_out(f"there are {self.limit} already"):
            pass
        if len(self._guests) >= self.limit + SPARE:
            return False
        self._guests.add(guest)
        self.waits_for(guest)
        return True

    def turn_one_out(self, reason: str) -> bool:
        self._say(reason)
        guest = next(iter(self._waited_for), None)
        if guest is None:
            return False
        self.leave(guest)
        guest.turn_out()
        return True

    def leave(self, guest: Guest) -> None:
        self._guests.discard(guest)
        self._waited_for.pop(guest, None)

    def waits_for(self, guest: Guest) -> None:
        """The server waits for the guest, from now on or since earlier."""
        if guest in self._guests:
            self._waited_for.setdefault(guest)

    def works_for(self, guest: Guest) -> None:
        """The guest waits for the server."""
        self._waited_for.pop(guest, None)

    def _say(self, reason: str) -> None:
        if time.monotonic() - self._said_at >= SAY_AGAIN_S:
            self._said_at = time.monotonic()
            log.warning("no room for a connection: %s; clients that are waited for longest are cut off", reason)
