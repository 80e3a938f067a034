"""The verb `bench report`: the table of a comparison, of kernels or of pruning, that was written before."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="what bench compare, kernels or pruning has written")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the page there too")
    parser.add_argument(
        "--svg", type=Path, metavar="FILE", help="of bench pruning: write gap closed against minutes there"
    )
    parser.add_argument("--tokens-svg", type=Path, metavar="FILE", help="likewise: gap closed against tokens")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="write the document without its runs there too")


def run(args: argparse.Namespace) -> int:
    from twofour.bench.gpu import sheet
    from twofour.bench.gpu import table as gpu
    from twofour.bench.kernels import plan
    from twofour.bench.kernels import table as kernels
    from twofour.bench.pruning import presets as pruning
    from twofour.bench.report.report import Report
    from twofour.prune.errors import InputError
    from twofour.prune.format.folder import write_whole
    from twofour.prune.label import charts

    try:
        document = json.loads(args.file.read_text(encoding="utf-8"))
        kind = document["kind"]
        tables: dict[str, Callable[[dict[str, Any]], str]] = {
            plan.KIND: kernels.table,
            pruning.KIND: pruning.table,
            sheet.KIND: gpu.table,
        }
        table = tables[kind](document) if kind in tables else Report(document).table()
        wanted = {args.svg: pruning.chart, args.tokens_svg: pruning.tokens_chart}
        drawn = {file: charts.alone(draw(document)) for file, draw in wanted.items() if file and kind == pruning.KIND}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{args.file} is no report of bench compare, bench kernels or bench pruning ({error!r}); check the file"
        ) from error
    if kind in tables and (args.html or args.summary):
        raise InputError(f"{args.file} is not of bench compare; leave out --html and --summary")
    if (args.svg or args.tokens_svg) and not drawn:
        raise InputError(f"{args.file} is not of bench pruning; leave out --svg and --tokens-svg")
    for file, chart in drawn.items():
        write_whole(file, chart)
    if args.html:
        write_whole(args.html, Report(document).html())
    if args.summary:
        summary = {name: part for name, part in document.items() if name != "runs"}
        write_whole(args.summary, json.dumps(summary, indent=1, allow_nan=False) + "\n")
    print(table)
    return 0
