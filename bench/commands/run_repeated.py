"""`bench run --repeat`: one load several times, each time from the next seed."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from twofour.bench.commands import INVALID, run_forms, schedule_flags, service_flags
from twofour.prune.errors import InputError

if TYPE_CHECKING:
    from twofour.bench.load.run import Run
    from twofour.bench.load.workload import Schedule

MOST = 100  # runs; an interval of more is hardly narrower


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--repeat",
        type=int,
        default=1,
        metavar="N",
        help="so many runs, each from the next seed, with intervals over them; a document then has no requests "
        "(default: 1)",
    )


def refuse_impossible(args: argparse.Namespace) -> None:
    if not 1 <= args.repeat <= MOST:
        raise InputError(f"--repeat {args.repeat} is no number of runs; give 1 to {MOST}")
    one = {"--nonce": args.nonce, "--schedule": args.schedule, "--schedule-out": args.schedule_out}
    one |= {f"--{form}": file for form, file in run_forms.wanted(args).items()}
    one |= {"--format vllm-json": args.format != "twofour"}
    if args.repeat > 1 and (wrong := next((flag for flag, given in one.items() if given), None)):
        raise InputError(f"{wrong} is of one run, --repeat makes several; leave one away")


def run(args: argparse.Namespace) -> int:
    from twofour.bench import interrupt
    from twofour.bench.hardware import provenance
    from twofour.bench.load import repeat
    from twofour.bench.traffic import bounds
    from twofour.prune import out

    out.claim(args.out)
    about, schedules = provenance(), _schedules(args)
    bounds.files(max(schedule.at_once for schedule in schedules), args.workers)
    with interrupt.in_order() as ending:
        runs = _measured(args, schedules)
    whole = [one for one in runs if not one.cut_off]
    done = repeat.Repeated(whole or runs, len(whole) < len(schedules))
    kept = json.dumps(repeat.document(done) | about, allow_nan=False)
    out.deliver(kept if args.json else repeat.table(done), args.out, kept)
    if runs[-1].cut_off:
        return ending.status
    return 0 if done.valid else INVALID


def _schedules(args: argparse.Namespace) -> "list[Schedule]":
    seeds = range(args.seed, args.seed + args.repeat)
    return [schedule_flags.read(argparse.Namespace(**vars(args) | {"seed": seed})) for seed in seeds]


def _measured(args: argparse.Namespace, schedules: "Sequence[Schedule]") -> "list[Run]":
    """All runs, or those until an interrupt and what there is of that one."""
    from twofour.bench.load import slo
    from twofour.bench.load.run import CutOff, measure
    from twofour.prune.progress import to_stderr

    promised, service, runs = slo.parse(args.slo) if args.slo else None, service_flags.read(args), list["Run"]()
    for number, schedule in enumerate(schedules):
        print(f"run {number + 1} of {len(schedules)}", file=sys.stderr)
        try:
            runs.append(measure(service, schedule, None, to_stderr(), args.workers))
        except CutOff as interrupt:
            runs.append(interrupt.run)
            break
    return [replace(one, slo=slo.attain(promised, one.records)) for one in runs] if promised else runs
