"""API keys. Everything but the probes needs one; every wrong key takes the same time."""

from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from twofour.serve.edge import key_file
from twofour.serve.edge.errors import send_error, unauthorized
from twofour.serve.edge.ids import header

Digests = tuple[bytes, ...]


def read_keys(path: Path) -> Digests:
    """The digests of the keys in a file, one key a line."""
    return tuple(digest(key.encode()) for key in key_file.keys(path))


def digest(key: bytes) -> bytes:
    return sha256(key).digest()


def bearer(authorization: bytes | None) -> bytes | None:
    scheme, _, key = (authorization or b"").partition(b" ")
    return key.strip() if scheme.lower() == b"bearer" else None


def which(key: bytes, digests: Iterable[bytes]) -> int | None:
    """Compare with all of them, so that the time tells nothing about which one was close."""
    given = digest(key)
    same = [compare_digest(given, known) for known in digests]
    return same.index(True) if any(same) else None


class Auth:
    """Decides on `scope["path"]`, never on a URL that the Host header had a part in. Notes which key it was."""

    def __init__(self, app: ASGIApp, digests: Digests, open_paths: frozenset[str]) -> None:
        self._app, self._digests, self._open_paths = app, digests, open_paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._allows(scope):
            await self._app(scope, receive, send)
        else:
            await send_error(scope, send, unauthorized())

    def _allows(self, scope: Scope) -> bool:
        if not self._digests or scope["path"] in self._open_paths:
            return True
        key = which(bearer(header(scope, b"authorization")) or b"", self._digests)
        scope["state"]["key"] = key
        return key is not None
