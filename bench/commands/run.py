"""The verb `bench run`: load-test one server and print what it did."""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twofour.bench.commands import INVALID, SLO_HELP, run_forms, run_repeated, schedule_flags, service_flags
from twofour.prune.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twofour.bench.load.run import Run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Load-test one server through its OpenAI-compatible API. Exit status 3: a validity gate failed."
    )
    parser.add_argument(
        "url",
        metavar="URL",
        help="http://host:port, https too; or the full address of /completions or /chat/completions",
    )
    service_flags.add_arguments(parser)
    schedule_flags.add_arguments(parser)
    parser.add_argument(
        "--nonce",
        metavar="TEXT",
        help="makes prompts begin like no others; the same seed and nonce send the same again, which a server may have "
        "cached (default: drawn, and printed)",
    )
    parser.add_argument("--slo", metavar="SLO", help=SLO_HELP)
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="client processes that share the load, where one core is not enough: see bench selftest (default: 1)",
    )
    run_repeated.add_arguments(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the document here, with every request")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report there as one page")
    run_forms.add_arguments(parser)
    parser.add_argument(
        "--format", choices=("twofour", "vllm-json"), default="twofour", help="of the JSON (default: twofour)"
    )


def run(args: argparse.Namespace) -> int:
    from twofour.bench import interrupt
    from twofour.bench.hardware import provenance
    from twofour.bench.load import schedule_file, slo
    from twofour.bench.load.gates import failed
    from twofour.bench.load.run import measure_until_interrupted
    from twofour.bench.load.table import table
    from twofour.bench.traffic import bounds
    from twofour.prune import out
    from twofour.prune.progress import to_stderr

    _refuse_impossible(args)
    if args.repeat > 1:
        return run_repeated.run(args)
    files = (args.out, args.schedule_out, *run_forms.wanted(args).values())
    out.require_apart(files)
    for file in files:
        out.claim(file)
    about = provenance()
    promised = slo.parse(args.slo) if args.slo else None
    schedule = schedule_flags.read(args)
    bounds.files(schedule.at_once, args.workers)
    if args.schedule_out:
        schedule_file.write(schedule, args.schedule_out)
    service = service_flags.read(args)
    with interrupt.in_order() as ending:
        done = measure_until_interrupted(service, schedule, args.nonce, to_stderr(), args.workers)
        done = replace(done, slo=slo.attain(promised, done.records)) if promised else done
        document = json.dumps(_document(done, args.format, with_records=False) | about, allow_nan=False)
        out.deliver(document if args.json else table(done), args.out, _whole(done, args.format, about))
        _write_forms(args, done, about)
    for gate in failed(done.gates):
        print(f"invalid run: {gate.name}: {gate.remedy}", file=sys.stderr)
    if done.cut_off:
        return ending.status
    return 0 if done.valid else INVALID


def _write_forms(args: argparse.Namespace, done: "Run", about: dict[str, Any]) -> None:
    from twofour.bench.load import run as load
    from twofour.bench.load import stored
    from twofour.prune.format.folder import write_whole

    if files := run_forms.wanted(args):
        # As it is read again: infinite is null there. The requests are not: there may be too many to have them twice.
        head = json.loads(next(load.pieces(done, about)) + "}")
        again = replace(stored.read(head | {"records": []}), records=done.records, started_at=done.started_at)
        for file, text in run_forms.written(replace(again, schedule=done.schedule), head, files).items():
            write_whole(file, text)


def _whole(done: "Run", form: str, about: dict[str, Any]) -> "Iterator[str]":
    """With the requests."""
    from twofour.bench.load import run as load

    if form == "twofour":
        yield from load.pieces(done, about)
    else:
        yield json.dumps(_document(done, form, with_records=True) | about, allow_nan=False)


def _refuse_impossible(args: argparse.Namespace) -> None:
    from twofour.prune.machine.processors import usable_cpus

    if args.workers < 1:
        raise InputError(f"{args.workers} client processes send nothing; --workers is at least 1")
    run_repeated.refuse_impossible(args)
    if args.workers > (cpus := len(usable_cpus())):
        raise InputError(f"{args.workers} client processes wait for {cpus} CPUs in turn; --workers is at most {cpus}")
    if args.nonce and not args.nonce.isprintable():
        raise InputError("the nonce holds what is no text; give --nonce letters and digits")


def _document(done: "Run", form: str, with_records: bool) -> dict[str, Any]:
    from twofour.bench.load.run import document
    from twofour.bench.load.vllm_json import flat

    return (flat if form == "vllm-json" else document)(done, with_records)
