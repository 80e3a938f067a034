"""The verb `bench report`: the table of a comparison, or of kernels, that was written before."""

import argparse
import json
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="what bench compare or bench kernels has written")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the page there too")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="write the document without its runs there too")


def run(args: argparse.Namespace) -> int:
    from twofour.bench.kernels import table as kernels
    from twofour.bench.kernels.plan import KIND
    from twofour.bench.report.report import Report
    from twofour.prune.errors import InputError
    from twofour.prune.folder import write_whole

    try:
        document = json.loads(args.file.read_text(encoding="utf-8"))
        of_kernels = document["kind"] == KIND
        table = kernels.table(document) if of_kernels else Report(document).table()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{args.file} is no report of bench compare or bench kernels ({error!r}); check the file"
        ) from error
    if of_kernels and (args.html or args.summary):
        raise InputError(f"{args.file} is of bench kernels, which has a table only; leave out --html and --summary")
    if args.html:
        write_whole(args.html, Report(document).html())
    if args.summary:
        summary = {name: part for name, part in document.items() if name != "runs"}
        write_whole(args.summary, json.dumps(summary, indent=1, allow_nan=False) + "\n")
    print(table)
    return 0
