"""Who is connected. There are never more connections than the process may have open files.

At the limit, who has kept the server waiting longest makes room for who comes: a client that says nothing, sends its
request slowly, or does not take its answer cannot keep others out. Where all that are there wait for the server
instead, a few more are let in, of which only probes are answered.
"""

import logging
import os
import resource
import time
from typing import Protocol

MAX_CONNECTIONS = 4096
SPARE = 16  # beyond the limit, for probes
RESERVED_FILES = 16  # for what is opened later: the engine's pipes, a file that is read
SAY_AGAIN_S = 60.0

log = logging.getLogger(__name__)


class Guest(Protocol):
    def turn_out(self) -> None: ...


def raise_open_files() -> None:
    """As many open files as the process may have: every connection is one, and usual soft limits are low."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (OSError, ValueError) as error:  # systems that set no hard limit take no soft one without limit
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
        self._waited_for: dict[Guest, None] = {}  # the longest first
        self._said_at = -SAY_AGAIN_S

    @property
    def over(self) -> bool:
        """Whether only probes are answered now."""
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
        """The guest has the next word, since now or earlier."""
        if guest in self._guests:
            self._waited_for.setdefault(guest)

    def works_for(self, guest: Guest) -> None:
        self._waited_for.pop(guest, None)

    def _say(self, reason: str) -> None:
        if time.monotonic() - self._said_at >= SAY_AGAIN_S:
            self._said_at = time.monotonic()
            log.warning("no room for a connection: %s; clients that are waited for longest are cut off", reason)
