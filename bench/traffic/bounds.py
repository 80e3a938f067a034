"""What a load may be at most: what fills this machine's memory, or never ends, is refused before it is made.

All of a load lies in memory before its clock starts: each request as words and as the bytes that are sent. The answers
come to that; how much they take depends on what the server sends.
"""

from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit

from twofour.prune.errors import InputError
from twofour.prune.machine.available import free_bytes

MOST_AT_ONCE = 60_000  # connections from one address to one port of a server have a port each, of 65,535
MOST_TURNS = 10_000
MOST_PREFIXES = 1_000_000
LONGEST_S = 30 * 86_400.0
REQUEST_BYTES, TOKEN_BYTES = 1_300, 18  # at the peak, measured: 20,000 of 128 tokens, 2,000 of 200 turns
_FILES = 64  # of a client, beside its connections


def memory(requests: float, sent_tokens: float) -> None:
    """sent_tokens: of a request in the mean, what was said before among them."""
    needed, free = requests * (REQUEST_BYTES + TOKEN_BYTES * sent_tokens), free_bytes()
    if needed > free:
        raise InputError(
            f"{requests:,.0f} requests of about {sent_tokens:,.0f} tokens take {needed / 2**30:,.1f} GiB before the "
            f"first is sent, and {max(0, free) / 2**30:,.1f} GiB are free; ask for fewer, for shorter ones, or for "
            "less time"
        )


def at_once(count: int | None, flag: str) -> None:
    if count is not None and count > MOST_AT_ONCE:
        raise InputError(
            f"{count:,} requests at a time need a connection each, and one client has ports for {MOST_AT_ONCE:,}; "
            f"lower {flag}"
        )


def files(connections: int, workers: int) -> None:
    """Every connection is an open file of the process that has it."""
    hard = getrlimit(RLIMIT_NOFILE)[1]
    if hard != RLIM_INFINITY and connections > workers * max(1, hard - _FILES):
        raise InputError(
            f"{connections:,} requests at a time need as many open files, and a process may have {hard:,}; raise the "
            "limit (ulimit -Hn), or send fewer at a time, or by more --workers"
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
