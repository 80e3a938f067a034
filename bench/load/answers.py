"""What a response is that is no stream, in words: a redirect, a page, a refusal, an answer in one piece.

Each begins with its kind, which ends at the first colon.
"""

import json
from collections.abc import Mapping
from typing import Any

from twofour.bench.load import wire

TRUNCATED = "truncated: the stream ended without a finish reason"
_LONGEST = 300
_GLIMPSE = 80


def no_stream(status: int | None, headers: Mapping[str, str], body: bytes) -> str:
    """Of status 2xx, when it has no event at all. The body is without secrets already."""
    kind = _media(headers)
    if status not in (None, 200):
        return f"status {status}: no answer is in it; is the API there? check the address"
    if kind == "text/event-stream" or not (kind or body):
        return TRUNCATED
    try:
        whole = json.loads(body)
    except (ValueError, RecursionError):
        return f"no API: {page(headers, 'a stream', body)}"
    if isinstance(whole, dict) and whole.get("error"):
        return f"server: {message(whole)}"
    if isinstance(whole, dict) and "choices" in whole:
        return 'not streamed: the answer came whole; the server ignores "stream", measure one that heeds it'
    return f"no API: JSON that is no completion: {glimpse(body)}; check the address"


def refusal(status: int, headers: Mapping[str, str], body: bytes, secrets: tuple[str, ...]) -> str:
    """Of any other status. The body is without secrets already, the headers are not."""
    if status < 400:
        return f"status {status}: {_redirect(headers, secrets)}"
    try:
        detail = message(json.loads(body))
    except (ValueError, RecursionError):
        detail = printable(body.decode(errors="replace").strip())
    return f"status {status}: {detail[:_LONGEST]}"


def page(headers: Mapping[str, str], wanted: str, body: bytes) -> str:
    """Something else than what a program asks for."""
    what = _media(headers) or "something"
    return f"{what} instead of {wanted}: {glimpse(body)}; check the address, and log-ins on the way"


def message(body: Any) -> str:
    """What an error object says: OpenAI's, or that of a framework that knows of no API."""
    if isinstance(body, dict):
        body = body.get("error") or body.get("detail") or body
    if isinstance(body, dict):
        body = body.get("message", body)
    return printable(str(body)[:_LONGEST])


def glimpse(said: bytes) -> str:
    return printable(" ".join(said[:_GLIMPSE].decode(errors="replace").split()))


def printable(said: str) -> str:
    """Without what would move a terminal's cursor or change its colours."""
    return "".join(letter if letter.isprintable() else " " for letter in said)


def _redirect(headers: Mapping[str, str], secrets: tuple[str, ...]) -> str:
    """Where to. Without the query, which may hold a key."""
    to = headers.get("location", "").partition("?")[0]
    if not to:
        return "no answer is in it; is the API there? check the address"
    where = wire.shown(wire.hidden(to.encode(), secrets).decode())
    return f"the server sends on to {where[:_LONGEST]}; give the address that answers itself"


def _media(headers: Mapping[str, str]) -> str:
    return headers.get("content-type", "").partition(";")[0].strip().lower()
