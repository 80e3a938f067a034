"""What a supervisor such as systemd is told (sd_notify): ready, alive, about to end. Each is one datagram.

NOTIFY_SOCKET names the socket; without it nothing is said. WATCHDOG_USEC is how long the supervisor waits for the next
sign of life before it starts the server again. It gets one only while the engine makes progress, so an engine that
hangs is as good as a server that hangs.
"""

import asyncio
import logging
import os
import socket
from collections.abc import Callable, Mapping

READY, ALIVE, STOPPING = "READY=1", "WATCHDOG=1", "STOPPING=1"
SIGNS = 4  # of life, within the time that the supervisor waits for one

log = logging.getLogger(__name__)


def say(word: str, environment: Mapping[str, str] = os.environ) -> None:
    """Tell the supervisor, if there is one. One that does not listen holds nothing up."""
    if not (path := environment.get("NOTIFY_SOCKET")):
        return
    address = "\0" + path[1:] if path.startswith("@") else path  # @: a name without a file
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
            link.setblocking(False)
            link.sendto(word.encode(), address)
    except OSError as error:
        log.warning("cannot tell the supervisor %s at %s: %s; check NOTIFY_SOCKET", word, path, error)


def watchdog_s(environment: Mapping[str, str] = os.environ) -> float | None:
    """How long the supervisor waits for a sign of life of this process; None: it does not."""
    of_another = environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid())
    limit = environment.get("WATCHDOG_USEC", "")
    return None if of_another or not limit.isdecimal() or int(limit) == 0 else int(limit) / 1e6


async def feed(progress: Callable[[], bool], environment: Mapping[str, str] = os.environ) -> None:
    """Give signs of life while there is progress. Runs until it is cancelled."""
    limit_s = watchdog_s(environment)
    while limit_s:
        if progress():
            say(ALIVE, environment)
        await asyncio.sleep(limit_s / SIGNS)
    await asyncio.Event().wait()
