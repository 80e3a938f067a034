"""The verb `bench decode`: milliseconds of a decode step of several runtimes, in turns."""

import argparse
import json
from pathlib import Path

from twofour.bench.commands import INVALID
from twofour.prune.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Decode the same tokens after the same prompt with several runtimes, bare, in turns: milliseconds of a step, "
        "ratios, and which share of the machine's bandwidth that is. Exit status 3: the machine was busy, or it was "
        "interrupted."
    )
    parser.add_argument(
        "arms",
        nargs="+",
        metavar="NAME=RUNTIME[,OPTION=VALUE...]:MODEL",
        help="RUNTIME: fused or generic (our runners, with the options of serve), transformers, or llama.cpp "
        "(weights=bf16, f16, q8_0 or q4_0; flash-attention=on, off or auto); MODEL: a folder",
    )
    parser.add_argument("--baseline", nargs="+", metavar="NAME", help="to compare with (default: the first arm)")
    parser.add_argument("--threads", type=int, nargs="+", default=[1], metavar="N", help="default: 1")
    parser.add_argument(
        "--context", type=int, nargs="+", default=[64], metavar="N", help="tokens of the prompt (default: 64)"
    )
    parser.add_argument("--batch", type=int, nargs="+", default=[1], metavar="N", help="sequences (default: 1)")
    parser.add_argument("--steps", type=int, default=16, metavar="N", help="counted in a turn (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=9, metavar="N", help="turns of each (default: %(default)s)")
    parser.add_argument(
        "--node", type=Path, default=Path(), metavar="DIR", help="where node-llama-cpp is installed (default: here)"
    )
    parser.add_argument("--gguf", type=Path, metavar="DIR", help="keep what llama.cpp reads there, for the next time")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the document here")
    parser.add_argument("--json", action="store_true", help="print the document instead of the table")


def run(args: argparse.Namespace) -> int:
    for name in ("threads", "context", "batch"):
        if min(getattr(args, name)) < 1:
            raise InputError(f"--{name} has {min(getattr(args, name))}; it must be at least 1")
    for name in ("steps", "rounds"):
        if getattr(args, name) < 1:
            raise InputError(f"--{name} is {getattr(args, name)}; it must be at least 1")
    from twofour.bench import interrupt
    from twofour.bench.decode.arms import read_arms
    from twofour.bench.decode.document import document
    from twofour.bench.decode.measure import Plan, measure
    from twofour.bench.decode.table import table
    from twofour.bench.hardware import provenance
    from twofour.prune import out
    from twofour.prune.progress import to_stderr

    arms = read_arms(args.arms)
    baselines = _baselines(args.baseline, [arm.name for arm in arms])
    plan = Plan(arms, args.threads, args.context, args.batch, args.steps, args.rounds, args.node, args.gguf)
    out.claim(args.out)
    with interrupt.in_order():
        result = document(measure(plan, to_stderr()), baselines, provenance())
        text = json.dumps(result, allow_nan=False)
        out.deliver(text if args.json else table(result), args.out, text)
        if result["cut_off"]:
            raise KeyboardInterrupt
    return 0 if result["valid"] else INVALID


def _baselines(given: list[str] | None, names: list[str]) -> list[str]:
    if unknown := [name for name in given or [] if name not in names]:
        raise InputError(f"--baseline {unknown[0]} is no arm; choose from {', '.join(names)}")
    return given or names[:1]
