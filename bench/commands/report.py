"""The verb `bench report`: the table of a comparison, of kernels or of pruning, that was written before."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twofour.prune.errors import InputError

Document = dict[str, Any]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="what bench compare, kernels or pruning has written")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the page there too")
    parser.add_argument(
        "--svg", type=Path, metavar="FILE", help="of bench pruning: write gap closed against minutes there"
    )
    parser.add_argument("--tokens-svg", type=Path, metavar="FILE", help="likewise: gap closed against tokens")
    parser.add_argument("--summary", type=Path, metavar="FILE", help="write the document without its runs there too")


def run(args: argparse.Namespace) -> int:
    from twofour.prune.format.folder import write_whole

    try:
        document = json.loads(args.file.read_text(encoding="utf-8"))
        table = _tables()[document["kind"]](document)
        files = _charts(args, document) | _forms(args, document)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{args.file} is no report of bench compare, bench kernels or bench pruning ({error!r}); check the file"
        ) from error
    for file, text in files.items():
        write_whole(file, text)
    print(table)
    return 0


def _tables() -> dict[str, Callable[[Document], str]]:
    """How each kind of document is printed."""
    from twofour.bench.comparison import document as comparison
    from twofour.bench.decode import document as decode
    from twofour.bench.decode import table as decode_table
    from twofour.bench.gpu import sheet
    from twofour.bench.gpu import table as gpu
    from twofour.bench.kernels import grid
    from twofour.bench.kernels import table as kernels
    from twofour.bench.pruning import presets
    from twofour.bench.report import terminal
    from twofour.bench.vllm import document as vllm
    from twofour.bench.vllm import table as vllm_table

    return {
        comparison.KIND: terminal.table,
        grid.KIND: kernels.table,
        decode.KIND: decode_table.table,
        vllm.KIND: vllm_table.table,
        presets.KIND: presets.table,
        sheet.KIND: gpu.table,
    }


def _charts(args: argparse.Namespace, document: Document) -> dict[Path, str]:
    from twofour.bench.pruning import charts, presets
    from twofour.prune.label.charts import alone

    wanted = {args.svg: charts.minutes_chart, args.tokens_svg: charts.tokens_chart}
    if any(wanted) and document["kind"] != presets.KIND:
        raise InputError(f"{args.file} is not of bench pruning; leave out --svg and --tokens-svg")
    return {file: alone(draw(document)) for file, draw in wanted.items() if file}


def _forms(args: argparse.Namespace, document: Document) -> dict[Path, str]:
    """Other forms of a comparison."""
    from twofour.bench.comparison import document as comparison
    from twofour.bench.report.forms import Report

    if (args.html or args.summary) and document["kind"] != comparison.KIND:
        raise InputError(f"{args.file} is not of bench compare; leave out --html and --summary")
    page = {args.html: Report(document).html()} if args.html else {}
    summary = {name: part for name, part in document.items() if name != "runs"}
    return page | ({args.summary: json.dumps(summary, indent=1, allow_nan=False) + "\n"} if args.summary else {})
