"""W3C trace context: which trace of the caller's a request belongs to."""

import re

TRACEPARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def traceparent(given: bytes | None) -> str | None:
    """The header's value where it is one; anything else starts no trace."""
    return given.decode("ascii") if given is not None and TRACEPARENT.fullmatch(given) else None


def trace_id(parent: str | None) -> str | None:
    return parent[3:35] if parent else None
