"""The forms of a run that a program or a person may want beside its document: a page, and its requests as rows."""

import argparse
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Document = Mapping[str, Any]
FORMS = {
    "csv": "write a row for each request there, for spreadsheets",
    "jsonl": "write a line of JSON for each request there, with when each of its chunks came",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    for flag, what in FORMS.items():
        parser.add_argument(f"--{flag}", type=Path, metavar="FILE", help=what)


def wanted(args: argparse.Namespace) -> dict[str, Path]:
    """The files that were asked for, by their forms; the page among them."""
    return {form: file for form in ("html", *FORMS) if (file := getattr(args, form))}


def written(document: Document, files: Mapping[str, Path]) -> dict[Path, str]:
    """What goes into the files, from the document of a run with its requests."""
    makers = _makers() if files else {}
    return {file: makers[form](document) for form, file in files.items()}


def _makers() -> dict[str, Callable[[Document], str]]:
    from twofour.bench.load import per_request
    from twofour.bench.load.stored import read
    from twofour.bench.report.run_html import page

    return {
        "html": page,
        "csv": lambda document: per_request.csv_of(read(document)),
        "jsonl": lambda document: per_request.jsonl_of(read(document)),
    }
