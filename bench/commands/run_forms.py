"""The forms of a run that a program or a person may want beside its document: a page, and its requests as rows."""

import argparse
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from twofour.bench.load.run import Run

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


def written(run: "Run", document: Document, files: Mapping[str, Path]) -> dict[Path, str | Iterable[str]]:
    """What goes into the files. document: of the run, its requests need not be in it."""
    from twofour.bench.load import per_request
    from twofour.bench.report.run_html import page

    makers: dict[str, Callable[[], str | Iterable[str]]] = {
        "html": lambda: page(document, run),
        "csv": lambda: per_request.csv_of(run),
        "jsonl": lambda: per_request.jsonl_of(run),
    }
    return {file: makers[form]() for form, file in files.items()}
