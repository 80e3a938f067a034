"""What a load may be at most: what fills this machine's memory, or never ends, is refused before it is made.

All of a load lies in memory before its clock starts: each request as words and as the bytes that are sent. The answers
come to that; how much they take depends on what the server sends.
"""

from math import inf
from pathlib import Path
from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit

from twofour.prune.errors import InputError
from twofour.prune.machine.available import free_bytes
from twofour.prune.machine.processors import usable_cpus

MOST_PORTS = 60_000  # of 65,535, where a system does not say which it gives out
PORT_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
MOST_TURNS = 10_000
MOST_PREFIXES = 1_000_000
LONGEST_S = 30 * 86_400.0
REQUEST_BYTES, TOKEN_BYTES = 1_300, 18  # at the peak, measured: 20,000 of 128 tokens, 2,000 of 200 turns
_FILES = 64  # of a client, beside its connections


def memory(requests: float, sent_tokens: float) -> None:
    """sent_tokens: of a request in the mean, what was said before among them; 0 where no words are made."""
    needed, free = requests * (REQUEST_BYTES + TOKEN_BYTES * sent_tokens), free_bytes()
    of = f" of about {sent_tokens:,.0f} tokens" if sent_tokens else ""
    if needed > free:
        raise InputError(
            f"{requests:,.0f} requests{of} take {needed / 2**30:,.1f} GiB before the first is sent, and "
            f"{max(0, free) / 2**30:,.1f} GiB are free; ask for fewer, for shorter ones, or for less time"
        )


def at_once(count: int | None, flag: str, requests: float = inf) -> None:
    """requests: how many there are at all."""
    if count is not None and (connections := min(count, requests)) > (most := ports()):
        raise InputError(
            f"{connections:,} requests at a time need a connection each, and one client has ports for {most:,}; "
            f"lower {flag}"
        )


def ports() -> int:
    """Connections from one address to one port of a server have a port each, of those that this system gives out."""
    try:
        low, high = map(int, PORT_RANGE.read_text().split())
    except (OSError, ValueError):
        return MOST_PORTS
    return high - low + 1


def files(connections: int, workers: int) -> None:
    """Every connection is an open file of the process that has it."""
    hard = getrlimit(RLIMIT_NOFILE)[1]
    share = ", or by more --workers" if workers < len(usable_cpus()) else ""
    if hard != RLIM_INFINITY and connections > workers * max(1, hard - _FILES):
        raise InputError(
            f"{connections:,} requests at a time need as many open files, and a process may have {hard:,}; raise the "
            f"limit (ulimit -Hn), or send fewer at a time{share}"
        )


def lasts(seconds: float) -> None:
    if seconds > LONGEST_S:
        raise InputError(
            f"the last request would leave after {seconds / 86_400:,.0f} days; give more --rate, fewer --requests, or "
            "a --duration"
        )


def sessions(turns: float, prefixes: int) -> None:
    if turns > MOST_TURNS:
        raise InputError(
            f"sessions of {turns:,.0f} turns hold all that was said before in each; --turns is at most {MOST_TURNS:,}"
        )
    if prefixes > MOST_PREFIXES:
        raise InputError(
            f"of {prefixes:,} beginnings hardly two requests would have the same; --prefixes is at most "
            f"{MOST_PREFIXES:,}"
        )
