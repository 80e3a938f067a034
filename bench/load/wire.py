"""HTTP/1.1 as far as a load client needs it: a request out, one response in, whatever pieces it arrives in.

The response is read as it comes: `feed` takes the bytes of one read and returns what they hold of the body,
without the framing (chunked, by Content-Length, or to the end of the connection). The body is not looked
at.
"""

import base64
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Literal
from urllib.parse import quote, urlsplit

from twofour.prune.errors import InputError

_LONGEST_HEAD = 65536
_FEWEST = 6  # letters of base64 that tell of a secret
_WITHOUT_BODY = (204, 304)  # whatever the headers say


class WireError(Exception):
    """The server does not speak HTTP/1.1 as it should."""


@dataclass(frozen=True)
class Target:
    """Where the API of a server is: `base` is the path that its /completions comes after, `query` goes with every
    request.
    """

    host: str
    port: int
    base: str
    query: str = field(default="", repr=False)
    tls: bool = False

    @property
    def authority(self) -> str:
        """Host and port as a header names them: without the port where it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.tls] else f"{host}:{self.port}"

    def path(self, of_api: str) -> str:
        """As it is asked for: `of_api` is what comes after /v1."""
        return self._asked(f"{self.base}{of_api}")

    def outside(self, path: str) -> str:
        """The same for a path that begins with /v1, or one beside the API, such as /metrics."""
        if path.startswith("/v1/"):
            return self.path(path.removeprefix("/v1"))
        return self._asked(f"{self.base.removesuffix('/v1')}{path}")

    def _asked(self, path: str) -> str:
        return f"{path}?{self.query}" if self.query else path


_PORTS = {False: 80, True: 443}
_ANSWERS: dict[str, Literal["chat", "completions"]] = {"/chat/completions": "chat", "/completions": "completions"}


def target(url: str) -> Target:
    """Read an address: of a server, of its API (which ends in /v1), or in full, up to /completions."""
    if re.search(r"[\s\x00-\x1f\x7f]", url):
        raise InputError(f"{shown(url)!r} has a blank in it; write %20 for one")
    parts = urlsplit(url if "//" in url else f"//{url}", scheme="http")
    if "@" in parts.netloc:
        raise InputError(f"{shown(url)} has a user or a password in it; give the address without, see --api-key-file")
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InputError(f"{shown(url)!r} is not the address of a server; write http://host:port")
    tls, base = parts.scheme == "https", parts.path.rstrip("/")
    for end in _ANSWERS:
        if base.endswith(end):
            return Target(parts.hostname, _port(url, parts.netloc, tls), base.removesuffix(end), parts.query, tls)
    base = base if base.endswith("/v1") else f"{base}/v1"
    return Target(parts.hostname, _port(url, parts.netloc, tls), base, parts.query, tls)


def api_of(url: str) -> Literal["chat", "completions"] | None:
    """Which API an address names in full; None: it is that of a server."""
    path = urlsplit(url if "//" in url else f"//{url}").path.rstrip("/")
    return next((api for end, api in _ANSWERS.items() if path.endswith(end)), None)


def _port(url: str, netloc: str, tls: bool) -> int:
    try:
        return urlsplit(f"//{netloc}").port or _PORTS[tls]
    except ValueError:
        raise InputError(f"the port in {shown(url)!r} is not a number from 1 to 65535") from None


def shown(text: str) -> str:
    """An address, or a text with one in it, as it may be printed and kept: without user, password and keys."""
    text = re.sub(r"(//)[^/@\s]*@", r"\1...@", text)
    return re.sub(r"([?&])(?!api-version=)([^=&#\s]+)=[^&#\s]*", r"\1\2=...", text) if "//" in text else text


def hidden(said: bytes, secrets: tuple[str, ...]) -> bytes:
    """What a server said, without keys and the like: some send them back, perhaps escaped or in base64."""
    if b"\\" not in said and not any(form in said for form in _forms(secrets)):
        return said  # for the pattern takes ten times as long
    return _spellings(secrets).sub(b"...", said)


@lru_cache(maxsize=8)
def _spellings(secrets: tuple[str, ...]) -> re.Pattern[bytes]:
    """`/` may come as `\\/`, and every character as `\\u002f`, with more backslashes in JSON within JSON."""
    return re.compile(b"|".join(b"".join(map(_spelling, form.decode())) for form in _forms(secrets)) or b"(?!)")


@lru_cache(maxsize=8)
def _forms(secrets: tuple[str, ...]) -> tuple[bytes, ...]:
    return tuple(form.encode() for secret in secrets for form in _forms_of(secret))


def _forms_of(secret: str) -> Iterator[str]:
    """Itself, as addresses have it, and the letters of base64 that are of nothing else, wherever it stands."""
    in_address = quote(secret, safe="")
    yield from {secret: None, in_address: None, re.sub("%..", lambda sign: sign[0].lower(), in_address): None}
    for before in range(3):  # bytes in its group of three
        text = base64.b64encode(bytes(before) + secret.encode()).decode()
        own = text[-(-before * 8 // 6) : (before + len(secret.encode())) * 8 // 6]
        if len(own) >= _FEWEST:
            yield own
            yield own.replace("+", "-").replace("/", "_")


def _spelling(sign: str) -> bytes:
    return rb"(?:\\{0,7}%b|\\{1,7}u(?i:%04x))" % (re.escape(sign.encode()), ord(sign))


def post(to: Target, path: str, body: bytes, fields: Mapping[str, str]) -> bytes:
    """The bytes of a POST of JSON; `fields` are headers beside those of every request."""
    lines = [
        f"POST {to.path(path)} HTTP/1.1",
        f"Host: {to.authority}",
        "Content-Type: application/json",
        "Accept: text/event-stream",
        f"Content-Length: {len(body)}",
        *(f"{name}: {value}" for name, value in fields.items()),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Response:
    """One response; `status` is None until its head is complete."""

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: dict[str, str] = {}  # by names in lower case
        self.started = False
        self.done = False
        self.keep_alive = True
        self._buffer = b""
        self._chunked = False
        self._left: int | None = None  # bytes of the body still to come; None: until the connection ends

    def feed(self, data: bytes) -> bytes:
        self.started = True
        self._buffer += data
        while self.status is None:
            if not self._head():
                return b""
        return self._chunks() if self._chunked else self._plain()

    def end(self) -> bool:
        """The connection has ended: is the response complete?"""
        if self.status is not None and not self._chunked and self._left is None:
            self.done = True
        return self.done

    def _head(self) -> bool:
        """Read the next head; False while it is not complete. One that only announces the answer (1xx) is dropped."""
        head, mark, rest = self._buffer.partition(b"\r\n\r\n")
        if not mark:
            if len(head) > _LONGEST_HEAD:
                raise WireError(f"no end of the headers within {_LONGEST_HEAD} bytes")
            return False
        first, *lines = head.decode("latin-1").split("\r\n")
        headers = {name.strip().lower(): value.strip() for name, _, value in (ln.partition(":") for ln in lines)}
        self._buffer = rest
        status = _status(first)
        if 100 <= status < 200:
            return True
        self.status, self.headers = status, headers
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked" and status not in _WITHOUT_BODY
        self._left = 0 if status in _WITHOUT_BODY else _length(headers.get("content-length"))
        closes = headers.get("connection", "").lower() == "close" or first.startswith("HTTP/1.0")
        self.keep_alive = not closes and (self._chunked or self._left is not None)
        return True

    def _plain(self) -> bytes:
        body, self._buffer = self._buffer, b""
        if self._left is not None:
            self._left -= len(body)
            self.done = self._left <= 0
        return body

    def _chunks(self) -> bytes:
        buffer, at, found = self._buffer, 0, []
        while (line_end := buffer.find(b"\r\n", at)) >= 0:
            size, start = _size(buffer[at:line_end]), line_end + 2
            if size == 0:
                self.done = buffer.find(b"\r\n\r\n", line_end) >= 0  # after it there may be trailers
                break
            if len(buffer) < start + size + 2:
                break
            found.append(buffer[start : start + size])
            at = start + size + 2
        self._buffer = buffer[at:]
        return b"".join(found)


def _status(line: str) -> int:
    version, _, rest = line.partition(" ")
    if not version.startswith("HTTP/1.") or not rest[:3].isdecimal():
        raise WireError(f"{line[:40]!r} is not the first line of an HTTP/1.1 response")
    if rest.startswith("101"):
        raise WireError("the server switches to another protocol, which nobody asked for")
    return int(rest[:3])


def _length(text: str | None) -> int | None:
    if text is not None and not text.isdecimal():
        raise WireError(f"the content length is {text[:40]!r}")
    return None if text is None else int(text)


def _size(line: bytes) -> int:
    try:
        return int(line.split(b";")[0], 16)
    except ValueError:
        raise WireError(f"a chunk begins with {line[:40]!r} instead of its size") from None
