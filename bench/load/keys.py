"""The API key of a load, from a file like that of `twofour serve --api-key-file`."""

from pathlib import Path

KEY_HELP = "a file of API keys, one a line as for serve; the first is sent"


def read_key(file: Path | None) -> str | None:
    """The first key in a file; None: no file, no key."""
    from twofour.serve.edge.key_file import keys

    return keys(file)[0] if file else None
