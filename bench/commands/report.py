"""The verb `bench report`: the table and the pictures of what was written before."""

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twofour.prune.errors import InputError

if TYPE_CHECKING:
    from markupsafe import Markup

Document = dict[str, Any]
PICTURES = {
    "svg": "of bench pruning: write gap closed against minutes there; of named arms: loss against bytes",
    "tokens-svg": "of bench pruning: gap closed against tokens",
    "bytes-svg": "of bench pruning: loss against bytes",
    "speed-svg": "of named arms: loss against tokens per second",
    "cost-svg": "of named arms: loss against dollars",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="what bench compare, kernels or pruning has written")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the page there too")
    for flag, what in PICTURES.items():
        parser.add_argument(f"--{flag}", type=Path, metavar="FILE", help=what)
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
    from twofour.bench.proof import proof, proof_table, selftest
    from twofour.bench.pruning import presets
    from twofour.bench.report import arms, several_terminal, terminal
    from twofour.bench.vllm import document as vllm
    from twofour.bench.vllm import table as vllm_table

    return {
        comparison.KIND: terminal.table,
        arms.SEVERAL: several_terminal.table,
        grid.KIND: kernels.table,
        decode.KIND: decode_table.table,
        vllm.KIND: vllm_table.table,
        presets.KIND: presets.table,
        sheet.KIND: gpu.table,
        selftest.KIND: selftest.table,
        proof.KIND: proof_table.table,
    }


def _charts(args: argparse.Namespace, document: Document) -> dict[Path, str]:
    from twofour.prune.label.charts import alone

    wanted = {flag: file for flag in PICTURES if (file := getattr(args, flag.replace("-", "_")))}
    known = _drawings(document) if wanted else {}
    if unknown := wanted.keys() - known.keys():
        raise InputError(f"{args.file} has no such picture; leave out --{min(unknown)}")
    return {file: alone(known[flag]()) for flag, file in wanted.items()}


def _drawings(document: Document) -> dict[str, Callable[[], "Markup"]]:
    """The pictures of a document by their flags."""
    from twofour.bench.pruning import charts, presets
    from twofour.bench.report import arms, offers

    if document["kind"] == presets.KIND:
        draw = {"svg": charts.minutes_chart, "tokens-svg": charts.tokens_chart, "bytes-svg": charts.bytes_chart}
        return {flag: partial(chart, document) for flag, chart in draw.items()}
    if document["kind"] != arms.SEVERAL:
        return {}
    pictures, about = offers.pictures(document), offers.about(document)
    flags = {"svg": "bytes", "speed-svg": "speed", "cost-svg": "dollars"}
    return {flag: partial(pictures[cost].draw, about) for flag, cost in flags.items()}


def _forms(args: argparse.Namespace, document: Document) -> dict[Path, str]:
    """Other forms of a comparison."""
    from twofour.bench.comparison import document as comparison
    from twofour.bench.report import arms
    from twofour.bench.report.forms import Report

    if (args.html or args.summary) and document["kind"] not in (comparison.KIND, arms.SEVERAL):
        raise InputError(f"{args.file} is not of bench compare; leave out --html and --summary")
    page = {args.html: Report(document).html()} if args.html else {}
    summary = {name: part for name, part in document.items() if name != "runs"}
    return page | ({args.summary: json.dumps(summary, indent=1, allow_nan=False) + "\n"} if args.summary else {})
