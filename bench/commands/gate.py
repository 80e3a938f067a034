"""The verb `bench gate`: is the new one slower than the base?"""

import argparse
import json
import sys
from pathlib import Path

from twofour.prune.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Compare two documents of bench run, sweep or compare, measured before and after a change. Exit status: 0 "
        "passed, 1 a regression, 2 inconclusive, 3 invalid."
    )
    for name, what in (("base", "before"), ("new", "after")):
        parser.add_argument(
            name, metavar=name.upper(), type=Path, help=f"the document from {what}, or a folder of those of bench run"
        )
    parser.add_argument(
        "--max-regress",
        nargs="+",
        default=[],
        metavar="NAME=N%",
        help="by how much it may be worse: tpot=3%% ttft_p95=10%% output_tokens_per_s=2%% max_rate=5%%",
    )
    parser.add_argument("--json", action="store_true", help="print the document instead of the table")


def run(args: argparse.Namespace) -> int:
    """What cannot be read or compared is invalid: no regression was found, and none was excluded."""
    from twofour.bench.gate.evidence import read
    from twofour.bench.gate.judge import STATUS, judge, read_allowed
    from twofour.bench.gate.table import table
    from twofour.bench.hardware import circumstances

    try:
        if not args.max_regress:
            raise InputError("nothing says by how much a figure may be worse; give --max-regress tpot=3%")
        allowed = [read_allowed(text) for text in args.max_regress]
        found = judge(read(args.base), read(args.new), allowed)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return STATUS["invalid"]
    print(json.dumps(found.as_dict() | circumstances(), allow_nan=False) if args.json else table(found))
    return STATUS[found.verdict]
