"""A finished comparison: a document, and its three forms."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twofour.bench.report.html import page
from twofour.bench.report.terminal import table
from twofour.prune.errors import OutputError

JSON = "report.json"
HTML = "report.html"


@dataclass(frozen=True)
class Report:
    document: dict[str, Any]

    @property
    def valid(self) -> bool:
        """No run failed a gate."""
        return bool(self.document["valid"])

    def json(self) -> str:
        return json.dumps(self.document, allow_nan=False)

    def html(self) -> str:
        return page(self.document)

    def table(self) -> str:
        return table(self.document)

    def write(self, folder: Path) -> Path:
        """Write report.json and report.html; returns the page."""
        claim(folder)
        write_whole(folder / JSON, self.json() + "\n")
        write_whole(folder / HTML, self.html())
        return folder / HTML


def claim(folder: Path) -> None:
    """Make the folder, unless it holds a report already."""
    for name in (JSON, HTML):
        if (folder / name).exists():
            raise OutputError(f"{folder / name} exists; move it or choose another --out")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder} cannot be made ({error.strerror}); choose another --out") from error


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise OutputError(f"{path} cannot be written ({error.strerror}); choose another --out") from error
