"""The verb `bench overhead`: what the engine adds to a decode step, against a bare transformers forward."""

import argparse
import json

from twofour.prune.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Time decode steps at batch 1 on one CPU thread, in turns: the engine's (schedule, runner, sample, report) and "
        "those of a bare transformers forward with its argmax. Linears are replaced by stand-ins that cost nothing, so "
        "the ratio is that of everything else. Then time what is around a model, at 1 and 32 sequences: look for "
        "commands, schedule, sample and report, over stored logits."
    )
    parser.add_argument("model", metavar="MODEL", help="a folder or a hub id")
    parser.add_argument("--context", type=int, default=64, metavar="N", help="tokens of the prompt (default: 64)")
    parser.add_argument("--steps", type=int, default=32, metavar="N", help="in one turn (default: 32)")
    parser.add_argument("--rounds", type=int, default=15, metavar="N", help="pairs of the ratio (default: 15)")
    parser.add_argument("--json", action="store_true", help="print the document instead of the table")


def run(args: argparse.Namespace) -> int:
    for name in ("context", "steps", "rounds"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} is {getattr(args, name)}; it must be at least 1")
    from twofour.bench import interrupt
    from twofour.bench.engine.step import document, measure, table
    from twofour.bench.hardware import circumstances

    about = circumstances()
    with interrupt.in_order() as ending:
        found = measure(args.model, args.context, args.steps, args.rounds)
    result = document(found, args.model, args.context, args.steps) | about
    print(json.dumps(result, allow_nan=False) if args.json else table(result))
    return interrupt.status_of(result["rounds"], args.rounds, ending)
