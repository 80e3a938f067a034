"""The verb `bench selftest`: what load can be measured honestly on this machine."""

import argparse
import json
from pathlib import Path

from twofour.bench.commands import INVALID


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "The load client against a server that knows the truth, on this machine: what it adds to the times at several "
        "loads, how fast one process is, and eleven defects done on purpose. Takes about a minute; let nothing else "
        "run. Exit status 3: something blurs the numbers, and no gate says so."
    )
    parser.add_argument("--streams", type=int, metavar="N", help="only this many streams at a time (default: a ladder)")
    parser.add_argument("--quick", action="store_true", help="fewer requests: does it work at all?")
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the document here")


def run(args: argparse.Namespace) -> int:
    from twofour.bench import interrupt
    from twofour.bench.hardware import circumstances
    from twofour.bench.proof.selftest import LOADS, Load, selftest, table
    from twofour.prune import out
    from twofour.prune.errors import InputError
    from twofour.prune.progress import to_stderr

    if args.streams is not None and args.streams < 1:
        raise InputError(f"{args.streams} streams measure nothing; --streams is at least 1")
    out.claim(args.out)
    about = circumstances()
    loads = LOADS if args.streams is None else [Load(args.streams, 0.01)]
    rounds, requests = (2, 200) if args.quick else (6, 6000)
    with interrupt.in_order():
        found = selftest(loads, rounds, requests, to_stderr()) | about
    text = json.dumps(found, allow_nan=False)
    out.deliver(text if args.json else table(found), args.out, text)
    return 0 if found["valid"] else INVALID
