"""The verb `bench sweep`: running servers of any make, under a ladder of loads or up to the limit of a promise."""

import argparse
import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twofour.bench.commands import INVALID, SLO_HELP, schedule_flags, service_flags
from twofour.prune.errors import InputError

if TYPE_CHECKING:
    from twofour.bench.load.service import Service
    from twofour.bench.sweep.load import Load, Pace
    from twofour.bench.targets.running import Running
    from twofour.prune.progress import Progress

ROUNDS = 5
AT_A_TIME = (1, 8, 32)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Load running OpenAI-compatible servers at several numbers of requests at a time or a second, in turns: ratios "
        "to the first, latencies, goodput. With --slo and no pace: find the highest rate at which each keeps it. Exit "
        "status 3: a validity gate failed."
    )
    parser.add_argument("servers", nargs="+", metavar="[NAME=]URL[#MODEL]", help="a server; MODEL where it has several")
    pace = parser.add_mutually_exclusive_group()
    pace.add_argument("--concurrency", type=int, nargs="+", metavar="N", help="at a time (default: 1 8 32)")
    pace.add_argument("--rate", type=float, nargs="+", metavar="R", help="arrivals per second")
    parser.add_argument(
        "--arrivals", metavar="KIND", help="of rates: poisson, constant, or gamma:0.5 (default: poisson)"
    )
    parser.add_argument("--slo", metavar="SLO", help=SLO_HELP)
    parser.add_argument(
        "--within",
        type=float,
        default=0.02,
        metavar="SHARE",
        help="end a search when the highest rate that kept the SLO and the lowest that did not are so near "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--requests", type=int, metavar="N", help="of a run (default: as many as its pace and the SLO need)"
    )
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="visits of each (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="print the document instead of the table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the document here")
    schedule_flags.add_contents(parser)
    service_flags.add_arguments(parser)
    _add_servers(parser.add_argument_group("some of the servers"))


def _add_servers(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--plain-for", nargs="+", default=[], metavar="NAME", help="--plain for these only")
    group.add_argument(
        "--pid",
        nargs="+",
        default=[],
        metavar="NAME=PID",
        help="of servers that were started by setsid: they are frozen while others are measured",
    )


def run(args: argparse.Namespace) -> int:
    from twofour.bench import interrupt
    from twofour.bench.hardware import circumstances
    from twofour.bench.sweep.table import table
    from twofour.bench.targets.running import read_running
    from twofour.prune import out
    from twofour.prune.progress import to_stderr

    _refuse_impossible(args)
    load, paces = _load(args), _paces(args)
    out.claim(args.out)
    about = circumstances()
    with interrupt.in_order():
        servers = read_running(args.servers, partial(_service, args), args.plain_for, args.pid)
        result, cut_off = _swept(args, servers, load, paces, to_stderr())
        text = json.dumps(result | about, allow_nan=False)
        out.deliver(text if args.json else table(result), args.out, text)
        if cut_off:
            raise cut_off
    return 0 if result["valid"] else INVALID


def _swept(
    args: argparse.Namespace, servers: "list[Running]", load: "Load", paces: "list[Pace]", progress: "Progress"
) -> tuple[dict[str, Any], BaseException | None]:
    from twofour.bench.sweep.document import document
    from twofour.bench.sweep.ladder import climb
    from twofour.bench.sweep.limit import find_limits

    if paces:
        found, limits = climb(servers, load, paces, args.rounds, progress), None
    else:
        found, limits = find_limits(servers, load, args.rounds, args.within, progress)
    return document(found, servers, load, args.rounds, limits), found.cut_off


def _refuse_impossible(args: argparse.Namespace) -> None:
    from twofour.bench.turns import refuse_endless

    refuse_endless(args.rounds)
    if args.rounds < 1 or (args.requests is not None and args.requests < 1):
        raise InputError(f"{args.rounds} rounds of {args.requests} requests measure nothing; both are at least 1")
    if not 0.001 <= args.within <= 1:
        raise InputError(f"a search to within {args.within:g}; --within is from 0.001 to 1, 0.02 is 2 %")


def _service(args: argparse.Namespace, url: str, model: str | None) -> "Service":
    return service_flags.service(args, url, model or args.model)


def _load(args: argparse.Namespace) -> "Load":
    from twofour.bench.load import slo
    from twofour.bench.sweep.load import Load

    promised = slo.parse(args.slo) if args.slo else None
    return Load(schedule_flags.traffic(_at_any_pace(args)), promised, args.requests)


def _at_any_pace(args: argparse.Namespace) -> argparse.Namespace:
    """The flags as those of one run: of a closed loop, or of an open one where rates are given or searched for."""
    closed = not args.rate and (args.concurrency or not args.slo)
    pace = {"concurrency": 1, "rate": None} if closed else {"concurrency": None, "rate": "1"}
    return schedule_flags.contents_only(args, requests=1, **pace)


def _paces(args: argparse.Namespace) -> "list[Pace]":
    """The ladder, from the bottom up; empty: a search."""
    from twofour.bench.sweep.load import Pace

    if args.rate:
        return [Pace(rate=rate) for rate in sorted(set(args.rate))]
    if args.slo and not args.concurrency:
        return []
    return [Pace(concurrency=n) for n in sorted(set(args.concurrency or AT_A_TIME))]
