"""The verb `bench compare`: dense against 2:4, or any number of arms; a table for the eye, a report for the record."""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twofour.bench.commands import INVALID, SLO_HELP
from twofour.bench.load.keys import KEY_HELP, read_key
from twofour.bench.targets import shapes
from twofour.prune.errors import InputError
from twofour.serve.commands import rounding

if TYPE_CHECKING:
    from twofour.bench.comparison.experiment import Experiment
    from twofour.bench.comparison.views import Also
    from twofour.bench.report.forms import Report
    from twofour.prune.progress import Progress


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Serve a dense model as torch multiplies it and by the best dense kernels, and a 2:4 model; give all three the "
        "same load in turns, and report what 2:4 bought. With names, or more than two models: each against the first, "
        "and quality against bytes, speed and dollars. Exit status 3: a validity gate failed; the report is written "
        "all the same."
    )
    parser.add_argument(
        "models",
        metavar="[NAME=]MODEL",
        nargs="*",
        help="DENSE and SPARSE: folders, hub ids or URLs; or any number of them, with names",
    )
    parser.add_argument(
        "--arm-flags",
        action="append",
        default=[],
        metavar="NAME=FLAGS",
        help='what the server of an arm is started with, too: int8="--dense-values int8"; may be repeated',
    )
    _add_random(parser.add_argument_group("instead of DENSE and SPARSE"))
    _add_load(parser.add_argument_group("load, the same for all"))
    _add_other_loads(parser.add_argument_group("other loads, after that"))
    _add_quality(parser.add_argument_group("quality"))
    rounding.add_arguments(parser.add_argument_group("best dense and 2:4"))
    parser.add_argument("--threads", type=int, metavar="N", help="of a server (default: all CPUs but one)")
    parser.add_argument("--api-key-file", type=Path, metavar="F", help=f"{KEY_HELP}, for both URLs")
    parser.add_argument(
        "--price-per-hour", type=float, metavar="USD", help="of this machine (default: from a dated table)"
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("comparison"),
        metavar="DIR",
        help="for report.json, report.html and the servers' logs (default: %(default)s)",
    )
    parser.add_argument("--json", action="store_true", help="print the document instead of the table")


def _add_random(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--random-weights",
        metavar="SHAPE",
        choices=sorted(shapes.SHAPES),
        help="models made here, of random weights; one of %(choices)s",
    )
    group.add_argument(
        "--models",
        dest="models_folder",
        type=Path,
        metavar="DIR",
        help="make them there, or reuse those there (default: thrown away)",
    )


def _add_load(group: "argparse._ArgumentGroup") -> None:
    pace = group.add_mutually_exclusive_group()
    pace.add_argument("--concurrency", type=int, metavar="N", help="closed loop: at a time (default: 2)")
    pace.add_argument("--rate", type=float, metavar="R", help="open loop: Poisson arrivals per second")
    lengths = "128: all of that length; 128~0.3: lognormal, that mean and sigma (default: %(default)s)"
    group.add_argument("--prompt-tokens", default="64~0.3", metavar="L", help=lengths)
    group.add_argument("--output-tokens", default="32~0.3", metavar="L", help="the same (default: %(default)s)")
    group.add_argument(
        "--requests", type=int, default=16, metavar="N", help="per model and round (default: %(default)s)"
    )
    group.add_argument("--rounds", type=int, default=6, metavar="N", help="pairs of runs (default: %(default)s)")
    group.add_argument("--seed", type=int, default=0, metavar="S", help="of the schedules (default: 0)")
    group.add_argument("--slo", metavar="SLO", help=f"{SLO_HELP}; what a good request costs, too")


def _add_other_loads(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--also-concurrency", type=int, nargs="+", default=[], metavar="N", help="requests at a time")
    group.add_argument(
        "--also-rate", type=float, nargs="+", default=[], metavar="R", help="Poisson arrivals per second"
    )
    group.add_argument(
        "--also-search", action="store_true", help="find the highest rate at which each keeps --slo; takes long"
    )


def _add_quality(group: "argparse._ArgumentGroup") -> None:
    group.add_argument("--text", type=Path, metavar="FILE", help="to measure on (default: sampled from dense)")
    source = group.add_mutually_exclusive_group()
    source.add_argument(
        "--quality",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="what eval --json printed, instead; of named arms for each but the first",
    )
    source.add_argument("--no-quality", action="store_true", help="do not measure it")


def run(args: argparse.Namespace) -> int:
    from twofour.bench import interrupt
    from twofour.bench.report.forms import claim
    from twofour.prune.progress import to_stderr

    several = _are_several(args)
    _refuse_unclear(args, several)
    claim(args.out)
    with interrupt.in_order() as ending:
        report = (_compare_several if several else _compare_two)(args, to_stderr())
    try:
        page = report.write(args.out)
    finally:
        print(report.json() if args.json else report.table())
    print(f"report: {page.resolve()}", file=sys.stderr if args.json else sys.stdout)
    if report.cut_off:
        return ending.status
    return 0 if report.valid else INVALID


def _are_several(args: argparse.Namespace) -> bool:
    """More than two, or named."""
    from twofour.bench.comparison.named import is_named

    return len(args.models) > 2 or bool(args.arm_flags) or any(map(is_named, args.models))


def _compare_two(args: argparse.Namespace, progress: "Progress") -> "Report":
    from twofour.bench.comparison import quality
    from twofour.bench.comparison.compare import compare

    known = quality.from_file(Path(args.quality[0])) if args.quality else None
    with _models(args, progress) as (dense, sparse):
        return compare(
            dense,
            sparse,
            _experiment(args),
            quality=known,
            random_weights=args.random_weights,
            rounding=rounding.flags(args),
            api_key=read_key(args.api_key_file),
            **_same_of_all(args, progress),
        )


def _compare_several(args: argparse.Namespace, progress: "Progress") -> "Report":
    from twofour.bench.comparison.named import known_qualities, read_named
    from twofour.bench.comparison.several import compare_several

    arms = read_named(args.models, args.arm_flags)
    qualities = known_qualities(args.quality, arms)
    api_key = read_key(args.api_key_file)
    return compare_several(
        arms, _experiment(args), qualities=qualities, api_key=api_key, **_same_of_all(args, progress)
    )


def _same_of_all(args: argparse.Namespace, progress: "Progress") -> dict[str, Any]:
    from twofour.bench.hardware import command_line
    from twofour.bench.money import cost

    return {
        "measure_quality": not args.no_quality,
        "text": args.text,
        "price": cost.given(args.price_per_hour) if args.price_per_hour is not None else None,
        "threads": args.threads,
        "logs": args.out,
        "command": command_line(),
        "also": _also(args),
        "progress": progress,
    }


def _also(args: argparse.Namespace) -> "Also":
    from twofour.bench.comparison.views import Also
    from twofour.bench.sweep.load import Pace

    paces = [Pace(concurrency=n) for n in args.also_concurrency] + [Pace(rate=rate) for rate in args.also_rate]
    return Also(paces, args.also_search)


def _refuse_unclear(args: argparse.Namespace, several: bool) -> None:
    if args.random_weights and (args.models or args.quality or args.text):
        raise InputError("--random-weights makes both models, without any quality; give no model, --quality or --text")
    if not args.random_weights and (len(args.models) < 2 or args.models_folder):
        raise InputError("give DENSE and SPARSE, or --random-weights with or without --models")
    if several and rounding.flags(args):
        raise InputError("named arms are served with flags of their own; give --arm-flags NAME=FLAGS instead")
    if not several and len(args.quality) > 1:
        raise InputError("two models have one loss; give --quality once, or give both models names")


@contextmanager
def _models(args: argparse.Namespace, progress: "Progress") -> Iterator[tuple[str, str]]:
    """Both models. Those of random weights are removed in the end, unless --models says where to keep them."""
    if not args.random_weights:
        dense, sparse = args.models
        yield dense, sparse
        return
    from twofour.bench.targets import random_model

    with tempfile.TemporaryDirectory(prefix="twofour-models-") as scratch:
        dense, sparse = random_model.pair(args.random_weights, args.models_folder or Path(scratch), progress)
        yield str(dense), str(sparse)


def _experiment(args: argparse.Namespace) -> "Experiment":
    from twofour.bench.comparison.experiment import Experiment
    from twofour.bench.load import slo
    from twofour.bench.load.workload import lengths

    return Experiment(
        requests=args.requests,
        concurrency=args.concurrency if args.rate or args.concurrency is not None else 2,
        rate=args.rate,
        prompt_tokens=lengths(args.prompt_tokens),
        output_tokens=lengths(args.output_tokens),
        rounds=args.rounds,
        seed=args.seed,
        slo=slo.parse(args.slo) if args.slo else None,
    )
