"""The verb `bench report`: the table and the pictures of what was written before."""

import argparse
import json
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twofour.bench.commands import run_forms
from twofour.prune.errors import InputError

if TYPE_CHECKING:
    from markupsafe import Markup

Document = dict[str, Any]
_LONGEST = 200
# How each kind of document is printed: a module of bench and its function. Some of them load torch.
_TABLES = {
    "twofour.bench.run": ("load.table", "of_document"),
    "twofour.bench.repeat": ("load.repeat", "of_document"),
    "twofour.bench.compare": ("report.terminal", "table"),
    "twofour.bench.arms": ("report.several_terminal", "table"),
    "twofour.bench.sweep": ("sweep.table", "table"),
    "twofour.bench.plan": ("capacity.table", "table"),
    "twofour.bench.gate": ("gate.table", "of_document"),
    "twofour.bench.profile": ("capacity.profile_table", "table"),
    "twofour.bench.selftest": ("proof.selftest", "table"),
    "twofour.bench.proof": ("proof.proof_table", "table"),
    "twofour.bench.plan_proof": ("proof.plan_proof_table", "table"),
    "twofour.bench.validation": ("capacity.validation_table", "table"),
    "twofour.bench.kernels": ("kernels.table", "table"),
    "twofour.bench.decode": ("decode.table", "table"),
    "twofour.bench.vllm": ("vllm.table", "table"),
    "twofour.bench.pruning": ("pruning.presets", "table"),
    "twofour.bench.gpu": ("gpu.table", "table"),
    "twofour.bench.http": ("engine.http_layer", "table"),
    "twofour.bench.overhead": ("engine.step", "table"),
}
PICTURES = {
    "svg": "of bench pruning: write gap closed against minutes there; of named arms: loss against bytes",
    "tokens-svg": "of bench pruning: gap closed against tokens",
    "bytes-svg": "of bench pruning: loss against bytes",
    "speed-svg": "of named arms: loss against tokens per second",
    "cost-svg": "of named arms: loss against dollars",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", metavar="FILE", type=Path, help="what a verb of bench has written with --out or --json")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the page there too")
    for flag, what in PICTURES.items():
        parser.add_argument(f"--{flag}", type=Path, metavar="FILE", help=what)
    parser.add_argument("--price-per-hour", type=float, metavar="USD", help="of a sweep: what a machine costs")
    parser.add_argument(
        "--traffic", type=float, metavar="R", help="of a sweep with a price: your requests a second, on average"
    )
    run_forms.add_arguments(parser)
    parser.add_argument(
        "--summary", type=Path, metavar="FILE", help="write the document without its requests there too"
    )


def run(args: argparse.Namespace) -> int:
    from twofour.bench.envelope import checked
    from twofour.prune import out
    from twofour.prune.format.folder import write_whole

    try:
        document = checked(json.loads(args.file.read_text(encoding="utf-8")), str(args.file))
        table = _table(document["kind"])(document)
        files = _charts(args, document) | _forms(args, document)
        out.require_apart([args.file, *_asked_for(args)])
        for file, text in files.items():  # which may be made as it is written
            write_whole(file, text)
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        why = f"{type(error).__name__}: {str(error)[:_LONGEST]}"  # which may quote the file
        raise InputError(f"{args.file} is no document of a verb of bench ({why}); check the file") from error
    print(table)
    return 0


def _asked_for(args: argparse.Namespace) -> list[Path | None]:
    named = [getattr(args, flag.replace("-", "_")) for flag in PICTURES]
    return [*named, *run_forms.wanted(args).values(), args.summary]


def _table(kind: str) -> Callable[[Document], str]:
    module, function = _TABLES[kind]
    table: Callable[[Document], str] = getattr(import_module(f"twofour.bench.{module}"), function)
    return table


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


def _forms(args: argparse.Namespace, document: Document) -> dict[Path, str | Iterable[str]]:
    """A page, rows of requests, the document without its requests."""
    from twofour.bench.load import run as load
    from twofour.bench.load import stored

    kind, files = document["kind"], run_forms.wanted(args)
    summary = {name: part for name, part in document.items() if name not in ("runs", "records")}
    short: dict[Path, str | Iterable[str]] = {}
    if args.summary:
        short[args.summary] = json.dumps(summary, indent=1, allow_nan=False) + "\n"
    if kind == load.KIND:
        return short | (run_forms.written(stored.read(document), document, files) if files else {})
    if rows := files.keys() - {"html"}:
        raise InputError(f"{args.file} is no single run; leave out --{min(rows)}")
    return short | ({args.html: _page(args, document)} if args.html else {})


def _page(args: argparse.Namespace, document: Document) -> str:
    from twofour.bench.comparison import document as comparison
    from twofour.bench.report import arms, plan_html, sweep_html
    from twofour.bench.report.forms import Report

    if document["kind"] in (comparison.KIND, arms.SEVERAL):
        return Report(document).html()
    if document["kind"] == "twofour.bench.sweep":
        for flag in ("price_per_hour", "traffic"):
            if (value := getattr(args, flag)) is not None and not 0 < value < inf:
                raise InputError(f"--{flag.replace('_', '-')} is {value:g}; it must be above 0")
        return sweep_html.page(document, args.price_per_hour, args.traffic)
    if document["kind"] == "twofour.bench.plan":
        return plan_html.page(document)
    raise InputError(f"{args.file} is of {document['kind']}, which has no page; leave out --html")
