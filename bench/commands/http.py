"""The verb `bench http`: what the HTTP layer alone sustains, with an engine process that has no model."""

import argparse
import json
from pathlib import Path

from twofour.prune.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Serve a model's tokenizer with an engine process that computes nothing, and ask for whole answers of 1 token "
        "and streams of 32, by 1, 8 and 64 clients at a time, in turns: requests and events per second, latencies, and "
        "the server's CPU time for a request."
    )
    parser.add_argument("model", metavar="MODEL", help="a folder or a hub id; only its tokenizer is used")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="visits of each cell (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=2.0, metavar="S", help="of a visit (default: %(default)g)")
    parser.add_argument("--json", action="store_true", help="print the document instead of the table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the document here")


def run(args: argparse.Namespace) -> int:
    for name in ("rounds", "seconds"):
        if not getattr(args, name) > 0:
            raise InputError(f"--{name} is {getattr(args, name)}; it must be above 0")
    from twofour.bench import interrupt
    from twofour.bench.engine.http_layer import PACKAGES, document, measure, table
    from twofour.bench.hardware import circumstances
    from twofour.prune import out
    from twofour.prune.progress import to_stderr

    out.claim(args.out)
    about = circumstances(*PACKAGES)
    with interrupt.in_order() as ending:
        found = measure(args.model, args.rounds, args.seconds, to_stderr())
    result = document(found, args.model, args.seconds) | about
    text = json.dumps(result, allow_nan=False)
    out.deliver(text if args.json else table(result), args.out, text)
    return interrupt.status_of(result["rounds"], args.rounds, ending)
