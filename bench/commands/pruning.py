"""The verb `bench pruning`: presets, budgets and folders compared by quality, minutes and bytes."""

import argparse
import json
from pathlib import Path
from typing import get_args


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from twofour.prune.config import Preset, Values

    parser.description = (
        "Prune a model with several presets, budgets, calibrations and seeds, and judge all of them, and other folders "
        "of it, on the second half of a text. A command that was cut off goes on where it was."
    )
    parser.add_argument("model", metavar="DENSE", help="a dense model: a folder or a hub id")
    parser.add_argument("--text", type=Path, required=True, metavar="FILE", help="a UTF-8 text of many lines")
    parser.add_argument("--preset", nargs="*", choices=get_args(Preset), default=get_args(Preset), help="default: all")
    parser.add_argument(
        "--calibration",
        nargs="+",
        default=["first", "self"],
        metavar="SOURCE",
        help="first (half of the text), self (what the model samples itself), a file, self:first or self:FILE (what it "
        "writes from pieces of them on), or a mix of these, A+B (default: first self)",
    )
    parser.add_argument("--seed", nargs="+", type=int, default=[0, 1, 2], metavar="S", help="default: 0 1 2")
    parser.add_argument("--values", nargs="+", choices=get_args(Values), default=["model"], help="default: model")
    parser.add_argument(
        "--budget", nargs="+", type=float, default=[], metavar="B", help="prune --budget, too: mixtures of that cost"
    )
    parser.add_argument(
        "--rivals",
        action="store_true",
        help="judge the dense model as it is, in int8 and in 4 bits (simulated: no kernel), too",
    )
    parser.add_argument(
        "--arm", action="append", default=[], metavar="[NAME=]MODEL", help="judge this folder, too; may be repeated"
    )
    parser.add_argument(
        "--arm-flags", action="append", default=[], metavar="NAME=FLAGS", help='as int8="--dense-values int8"'
    )
    parser.add_argument("--samples", type=int, default=64, metavar="N", help="default: %(default)s")
    parser.add_argument("--length", type=int, default=512, metavar="L", help="default: %(default)s")
    parser.add_argument("--window", type=int, default=1024, metavar="N", help="tokens (default: %(default)s)")
    parser.add_argument("--windows", type=int, metavar="N", help="score at most this many")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="keeps the pruned models")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="the results, JSON")
    parser.add_argument("--json", action="store_true", help="print the results instead of a table")


def run(args: argparse.Namespace) -> int:
    from twofour.bench import interrupt
    from twofour.bench.comparison.named import read_named
    from twofour.bench.pruning.presets import Trials, compare_presets, table

    trials = Trials(
        model=args.model,
        text=args.text,
        presets=args.preset,
        calibrations=args.calibration,
        seeds=args.seed,
        values=args.values,
        samples=args.samples,
        length=args.length,
        window=args.window,
        windows=args.windows,
        budgets=args.budget,
        rivals=args.rivals,
        arms=read_named(args.arm, args.arm_flags),
    )
    with interrupt.in_order():
        results = compare_presets(trials, args.work, args.out)
    print(json.dumps(results) if args.json else table(results))
    return 0
