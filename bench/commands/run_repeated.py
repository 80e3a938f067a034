"""`bench run --repeat`: one load several times, each time from the next seed."""

import argparse
import json
import sys
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from twofour.bench.commands import INVALID, run_forms, schedule_flags, service_flags
from twofour.prune.errors import InputError, TwofourError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from twofour.bench.load.run import Run

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
    from twofour.prune import out

    out.claim(args.out)
    about = provenance()
    with interrupt.in_order() as ending:
        made = _measured(args)
        whole = [one for one in made.runs if not one.cut_off]
        done = repeat.Repeated(whole or made.runs, len(whole) < args.repeat)
        kept = repeat.document(done) | about
        text = json.dumps(kept, allow_nan=False)
        out.deliver(text if args.json else repeat.table(done, kept), args.out, text)
    for one in made.runs:
        _name_failed(one)
    if made.interrupted:
        return ending.status
    return 0 if done.valid else INVALID


@dataclass
class _Made:
    """runs: all, or those until something ended the series, and what there is of the one that an interrupt ended."""

    runs: "list[Run]" = field(default_factory=list)
    interrupted: bool = False


def _measured(args: argparse.Namespace) -> _Made:
    """What ends a later run does not lose those before it."""
    made = _Made()
    try:
        for one in _runs(args):
            made.runs.append(one)
            made.interrupted = one.cut_off
    except KeyboardInterrupt:  # in a warm-up, or while a run is summed up
        if not made.runs:
            raise
        made.interrupted = True
    except TwofourError as error:
        if not made.runs:
            raise
        print(f"error: run {len(made.runs) + 1} of {args.repeat}: {error}", file=sys.stderr)
    return made


def _runs(args: argparse.Namespace) -> "Iterator[Run]":
    """Each load is made on its turn: words of all would fill the memory."""
    from twofour.bench.load import slo
    from twofour.bench.load.run import measure_until_interrupted
    from twofour.bench.traffic import bounds
    from twofour.prune.progress import to_stderr

    promised, service = slo.parse(args.slo) if args.slo else None, service_flags.read(args)
    for number in range(args.repeat):
        schedule = schedule_flags.read(schedule_flags.other(args, seed=args.seed + number))
        bounds.files(schedule.at_once, args.workers)
        print(f"run {number + 1} of {args.repeat}", file=sys.stderr)
        one = measure_until_interrupted(service, schedule, None, to_stderr(), args.workers)
        yield replace(one, slo=slo.attain(promised, one.records)) if promised else one
        if one.cut_off:
            return


def _name_failed(one: "Run") -> None:
    from twofour.bench.load.gates import failed

    for gate in failed(one.gates):
        print(f"invalid run, seed {one.schedule.made_of['seed']}: {gate.name}: {gate.remedy}", file=sys.stderr)
