"""The verb `plan`: how many machines of which option, for a traffic and a promise."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twofour.bench.commands import SLO_HELP, schedule_flags
from twofour.prune.errors import InputError

if TYPE_CHECKING:
    from twofour.bench.capacity.plan import Asked
    from twofour.bench.capacity.profile import Profile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "How many machines of which option keep a promise under a traffic, what they cost, with how much headroom, and "
        "how sure that is: simulations of machines that bench profile has measured."
    )
    parser.add_argument(
        "--profile",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="an option, as bench profile wrote it; again for each, the first is what others are compared to",
    )
    _add_unmeasured(parser.add_argument_group("hardware without a profile: an estimate"))
    parser.add_argument("--slo", required=True, metavar="SLO", help=SLO_HELP)
    parser.add_argument("--rate", metavar="R", help="requests per second at the peak, or sessions of --turns")
    parser.add_argument(
        "--mean-rate", type=float, metavar="R", help="on average over a month (default: of the trace; else the peak)"
    )
    parser.add_argument(
        "--arrivals", metavar="KIND", help="of --rate: poisson, constant, or gamma:0.5 (default: poisson)"
    )
    _add_fleet(parser.add_argument_group("the fleet"))
    schedule_flags.add_contents(parser)
    parser.add_argument("--json", action="store_true", help="print the document instead of the table")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the document here")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the page here")


def _add_unmeasured(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--model", metavar="MODEL", help="a dense model, of which the config.json counts")
    group.add_argument(
        "--gpu", metavar="NAME,...", help="on one of these, by their data sheets: A10, A100, B200, H100, H200, L4, ..."
    )
    group.add_argument(
        "--arm", default="dense", metavar="ARM,...", help="stored so: dense, 2:4, int8 or 2:4-int8 (default: dense)"
    )


def _add_fleet(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--price",
        action="append",
        default=[],
        metavar="NAME=USD",
        help="dollars an hour of a machine of that profile; 2.5@2026-05-01 has the day of the price; H200 takes the "
        "price of that GPU from our table",
    )
    group.add_argument(
        "--spare", type=int, default=1, metavar="N", help="machines beside those that it takes (default: %(default)s)"
    )
    group.add_argument("--growth", metavar="G", help="of the traffic: 5%%/month or 40%%/year")
    group.add_argument(
        "--router",
        default="round_robin",
        metavar="NAME",
        help="who gets a request: round_robin, random, least_loaded, power_of_two or prefix_affinity "
        "(default: %(default)s)",
    )
    group.add_argument(
        "--extrapolate", action="store_true", help="answer beyond what was measured, too: the first line says so"
    )


def run(args: argparse.Namespace) -> int:
    from twofour.bench.capacity import option
    from twofour.bench.capacity.document import document
    from twofour.bench.capacity.plan import answers
    from twofour.bench.capacity.table import table
    from twofour.bench.hardware import circumstances
    from twofour.prune import out
    from twofour.prune.progress import to_stderr

    asked = _asked(args)
    options = option.options(_profiles(args), option.prices(args.price))
    out.require_apart([*args.profile, args.out, args.html])
    for file in (args.out, args.html):
        out.claim(file)
    about = circumstances()
    result = document(asked, answers(asked, options, to_stderr())) | about
    text = json.dumps(result, allow_nan=False)
    if args.html:
        _write_page(args.html, result)
    out.deliver(text if args.json else table(result), args.out, text)
    return 0


def _asked(args: argparse.Namespace) -> "Asked":
    from twofour.bench.capacity import growth
    from twofour.bench.capacity.demand import demand
    from twofour.bench.capacity.plan import Asked
    from twofour.bench.capacity.search import Promise
    from twofour.bench.load import slo

    if args.rate is None and args.trace is None:
        raise InputError("nothing says how much traffic there is; give --rate, or --trace FILE")
    traffic = schedule_flags.traffic(schedule_flags.contents_only(args, concurrency=None, requests=None))
    return Asked(
        demand(traffic, args.mean_rate),
        Promise(slo.parse(args.slo), args.router),
        args.spare,
        growth.parse(args.growth) if args.growth else None,
        args.extrapolate,
        seed=args.seed,
    )


def _profiles(args: argparse.Namespace) -> "list[Profile]":
    from twofour.bench.capacity import profile

    return [*map(profile.read, args.profile), *_estimates(args)]


def _estimates(args: argparse.Namespace) -> "list[Profile]":
    if args.model is None and args.gpu is None:
        return []
    if args.model is None or args.gpu is None:
        raise InputError("an estimate is of a model on a GPU; give both --model and --gpu")
    from twofour.bench.capacity.roofline import estimates
    from twofour.prune.format.folder import resolve

    return estimates(resolve(args.model), args.gpu.split(","), args.arm.split(","))


def _write_page(file: Path, result: dict[str, Any]) -> None:
    from twofour.bench.report import plan_html
    from twofour.prune.format.folder import write_whole

    write_whole(file, plan_html.page(result))
