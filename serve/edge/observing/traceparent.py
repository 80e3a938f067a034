"""W3C trace context: the trace of the caller to which a request belongs."""

import re

TRACEPARENT = re.compile(rb"00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def traceparent(given: bytes | None) -> str | None:
    """The value of the header if it is valid; else None, and the request belongs to no trace."""
    return given.decode("ascii") if given is not None and TRACEPARENT.fullmatch(given) else None


def trace_id(parent: str | None) -> str | None:
    return parent[3:35] if parent else None
