"""The verb `bench peers`: running servers of any make, under the same load in turns."""

import argparse
import json
from pathlib import Path

from twofour.bench.commands import INVALID
from twofour.bench.load.keys import KEY_HELP, read_key
from twofour.prune.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Give running OpenAI-compatible servers the same load in turns, at several numbers of requests at a time: "
        "output tokens per second as ratios to the first server, times to the first token and between tokens. Exit "
        "status 3: a validity gate failed."
    )
    parser.add_argument("peers", nargs="+", metavar="NAME=URL[#MODEL]", help="a server; MODEL where it has several")
    parser.add_argument(
        "--plain",
        nargs="+",
        default=[],
        metavar="NAME",
        help="servers that refuse ignore_eos and the like; serve a model there that has no end token",
    )
    parser.add_argument(
        "--pid",
        nargs="+",
        default=[],
        metavar="NAME=PID",
        help="of servers that were started by setsid: they are frozen while others are measured",
    )
    parser.add_argument(
        "--concurrency", type=int, nargs="+", default=[1, 8, 32], metavar="N", help="at a time (default: 1 8 32)"
    )
    lengths = "128: all of that length; 128~0.3: lognormal, that mean and sigma (default: %(default)s)"
    parser.add_argument("--prompt-tokens", default="128~0.3", metavar="L", help=lengths)
    parser.add_argument("--output-tokens", default="64~0.3", metavar="L", help="the same (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="visits of each (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the schedules (default: 0)")
    parser.add_argument("--api-key-file", type=Path, metavar="F", help=f"{KEY_HELP}, to all servers")
    parser.add_argument("--json", action="store_true", help="print the document instead of the table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the document here")


def run(args: argparse.Namespace) -> int:
    if args.rounds < 1 or min(args.concurrency) < 1:
        raise InputError(f"{args.rounds} rounds of {args.concurrency} at a time measure nothing; both are at least 1")
    from twofour.bench import interrupt
    from twofour.bench.comparison.peers import compare_peers, document, experiment, read_peers, table
    from twofour.bench.hardware import provenance
    from twofour.bench.load.access import Access
    from twofour.bench.load.workload import lengths
    from twofour.prune import out
    from twofour.prune.progress import to_stderr

    out.claim(args.out)
    access, about = Access(read_key(args.api_key_file)), provenance()
    sizes = lengths(args.prompt_tokens), lengths(args.output_tokens)
    experiments = [experiment(n, *sizes, args.rounds, args.seed) for n in args.concurrency]
    with interrupt.in_order():
        servers = read_peers(args.peers, args.plain, args.pid, access)
        found = compare_peers(servers, experiments, to_stderr(), access)
        result = document(found, servers, experiments) | about
        text = json.dumps(result, allow_nan=False)
        out.deliver(text if args.json else table(result), args.out, text)
        if found.cut_off:
            raise found.cut_off
    return 0 if result["valid"] else INVALID
