"""The verb `bench vllm`: vLLM offline with a dense and a 2:4 model, in turns."""

import argparse
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from twofour.bench.commands import INVALID
from twofour.prune.errors import InputError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Answer the same prompts by vLLM with several models, offline, in turns: times of a decode step, of whole "
        "answers and of prompts, as ratios. twofour must be installed where vLLM is. Exit status 3: the machine was "
        "busy, or it was interrupted."
    )
    parser.add_argument("arms", nargs="+", metavar="NAME=MODEL", help="MODEL: a folder")
    parser.add_argument("--baseline", metavar="NAME", help="to compare with (default: the first arm)")
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[1, 8, 32], metavar="N", help="requests at a time (default: 1 8 32)"
    )
    parser.add_argument("--context", type=int, default=64, metavar="N", help="tokens of their prompts (default: 64)")
    parser.add_argument(
        "--prefill", type=int, nargs="+", default=[64, 512], metavar="N", help="prompts alone (default: 64 512)"
    )
    parser.add_argument("--steps", type=int, default=16, metavar="N", help="counted in a turn (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each (default: %(default)s)")
    parser.add_argument(
        "--engine",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="arguments of vLLM's engine, the values in JSON: enforce_eager=true, for instance",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the document here")
    parser.add_argument("--json", action="store_true", help="print the document instead of the table")


def run(args: argparse.Namespace) -> int:
    for name in ("batch", "prefill", "context", "steps", "rounds"):
        given = getattr(args, name)
        if (least := min(given) if isinstance(given, list) else given) < 1:
            raise InputError(f"--{name} has {least}; it must be at least 1")
    from twofour.bench import interrupt
    from twofour.bench.hardware import provenance
    from twofour.bench.vllm.document import document
    from twofour.bench.vllm.measure import Plan, measure, read_arms
    from twofour.bench.vllm.table import table
    from twofour.prune import out
    from twofour.prune.progress import to_stderr

    arms, engine = read_arms(args.arms), dict(map(_option, args.engine))
    baseline = args.baseline or arms[0].name
    if baseline not in (names := [arm.name for arm in arms]):
        raise InputError(f"--baseline {baseline} is no arm; choose from {', '.join(names)}")
    if find_spec("vllm") is None:
        raise InputError("vLLM is not installed here; install twofour where vLLM is, and run it there")
    plan = Plan(arms, engine, args.batch, args.context, args.prefill, args.steps, args.rounds)
    out.claim(args.out)
    with interrupt.in_order():
        result = document(measure(plan, to_stderr()), baseline, provenance())
        text = json.dumps(result, allow_nan=False)
        out.deliver(text if args.json else table(result), args.out, text)
        if result["cut_off"]:
            raise KeyboardInterrupt
    return 0 if result["valid"] else INVALID


def _option(text: str) -> tuple[str, Any]:
    key, equals, value = text.partition("=")
    try:
        return key, json.loads(value) if equals else True
    except ValueError:
        return key, value
