"""What opens a server, from where it is kept: files, the environment, the command line.

A file of keys is like that of `twofour serve --api-key-file`.
"""

import os
from collections.abc import Iterable
from pathlib import Path

from twofour.prune.errors import InputError

KEY_HELP = "a file of API keys, one a line as for serve; the first is sent"


def read_key(file: Path | None, variable: str | None = None) -> str | None:
    """The first key in a file, or the value of an environment variable; None: neither is named, so no key."""
    from twofour.serve.edge.key_file import keys

    if variable is None:
        return keys(file)[0] if file else None
    if not (key := os.environ.get(variable, "").strip()):
        raise InputError(f"the environment has no key in {variable}; set it, or give --api-key-file")
    return key


def read_headers(given: Iterable[str], file: Path | None) -> dict[str, str]:
    """Read NAME=VALUE, and a file with one a line. Raises InputError, which never quotes a value."""
    lines = [*_lines(file), *((None, text) for text in given)] if file else [(None, text) for text in given]
    headers: dict[str, str] = {}
    for number, text in lines:
        name, equals, value = text.partition("=")
        where = "a header" if number is None else f"line {number} of {file}"
        if not equals or not name.strip():
            raise InputError(f"{where} is no NAME=VALUE; write the name, = and the value")
        if name.strip().lower() in map(str.lower, headers):
            raise InputError(f"header {name.strip()} is given twice; give it once")
        headers[name.strip()] = value.strip()
    return headers


def _lines(file: Path) -> list[tuple[int | None, str]]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"cannot read the headers in {file}: it is no UTF-8; give a text file") from None
    except OSError as error:
        raise InputError(f"cannot read the headers in {file}: {error}; give a text file") from error
    return [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
