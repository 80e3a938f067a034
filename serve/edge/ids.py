"""Request ids: the client's where it is safe to print, else a new one."""

import re
import uuid

from starlette.types import Scope

SAFE = re.compile(rb"[A-Za-z0-9._:-]{1,128}")


def choose_id(given: bytes | None) -> str:
    if given is not None and SAFE.fullmatch(given):
        return given.decode("ascii")
    return uuid.uuid4().hex


def identify(scope: Scope) -> str:
    """The id of a request; it gets one if it has none yet."""
    given = choose_id(header(scope, b"x-request-id"))
    return str(scope.setdefault("state", {}).setdefault("request_id", given))


def header(scope: Scope, name: bytes) -> bytes | None:
    """The value of the first header of that (lower-case) name."""
    return next((value for key, value in scope["headers"] if key == name), None)


def request_id(scope: Scope) -> str:
    return str(scope["state"]["request_id"])
