"""A file of API keys, one a line, as every verb reads it."""

from pathlib import Path

from twofour.prune.errors import InputError


def keys(path: Path) -> tuple[str, ...]:
    """The keys in a file, at least one. Raises InputError, which never quotes what is in the file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError:
        raise InputError(f"cannot read the API keys in {path}: it is no UTF-8; give a text file") from None
    except OSError as error:
        raise InputError(f"cannot read the API keys in {path}: {error}; give a text file") from error
    found = {number: line.strip() for number, line in enumerate(lines, start=1) if line.strip()}
    if not found:
        raise InputError(f"{path} holds no API key; write one key a line")
    if bad := [number for number, key in found.items() if not fits_header(key)]:
        raise InputError(f"line {bad[0]} of {path} is no API key; write one key a line, of ASCII without spaces")
    return tuple(found.values())


def fits_header(key: str) -> bool:
    """Whether a header can carry it as it is: visible ASCII, so no space and no line end."""
    return all("!" <= character <= "~" for character in key)
