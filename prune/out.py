"""Where a result is written: checked before anything is measured, and printed even where writing fails."""

import os
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

from twofour.prune.errors import OutputError
from twofour.prune.format.folder import refuse_existing, write_whole


def claim(out: Path | None) -> None:
    """Raise OutputError unless a new file can be written there; None: no file is wanted."""
    if out is not None:
        refuse_existing(out)
        require_folder(out)


def require_apart(files: Iterable[Path | None]) -> None:
    """Raise OutputError where two of these are one file."""
    seen = set[Path]()
    for file in (file.resolve() for file in files if file is not None):
        if file in seen:
            raise OutputError(f"{file.name} would be written over another file of this command; give each its own")
        seen.add(file)


def require_folder(out: Path) -> None:
    """Raise OutputError unless there is a folder for the file, which can be written into."""
    if not out.parent.is_dir():
        raise OutputError(f"{out.parent} is no folder; make it or choose another --out")
    if not os.access(out.parent, os.W_OK):
        raise OutputError(f"nothing can be written into {out.parent}; choose another --out")


def deliver(text: str, out: Path | None, document: str | Iterable[str]) -> None:
    """Write the document and print the text, even where writing fails."""
    try:
        if out:
            write_whole(out, chain([document] if isinstance(document, str) else document, "\n"))
    finally:
        print(text)
