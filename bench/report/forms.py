"""The three forms of a finished comparison: JSON, a page, a table."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from twofour.bench.report import several_html, several_terminal
from twofour.bench.report.arms import SEVERAL
from twofour.bench.report.html import page
from twofour.bench.report.terminal import table
from twofour.prune.errors import OutputError
from twofour.prune.format.folder import write_whole

JSON = "report.json"
HTML = "report.html"


@dataclass(frozen=True)
class Report:
    """A finished comparison."""

    document: dict[str, Any]

    @property
    def valid(self) -> bool:
        """No run failed a gate."""
        return bool(self.document["valid"])

    @property
    def cut_off(self) -> bool:
        """An interrupt ended it; the rounds until then are kept."""
        return bool(self.document.get("cut_off"))

    def json(self) -> str:
        return json.dumps(self.document, allow_nan=False)

    @property
    def _several(self) -> bool:
        return bool(self.document["kind"] == SEVERAL)

    def html(self) -> str:
        return several_html.page(self.document) if self._several else page(self.document)

    def table(self) -> str:
        return several_terminal.table(self.document) if self._several else table(self.document)

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
