"""The flags that say what load a server gets, shared by the verbs that give one."""

import argparse
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from twofour.prune.errors import InputError

if TYPE_CHECKING:
    from twofour.bench.load.workload import Limits, Schedule
    from twofour.bench.traffic.traffic import Rate, Traffic

_REQUESTS = 64
_CONCURRENCY = 4


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_pace(parser)
    add_contents(parser)
    parser.add_argument(
        "--schedule",
        type=Path,
        metavar="FILE",
        help="replay a file of --schedule-out; nothing else is said about the load",
    )
    parser.add_argument("--schedule-out", type=Path, metavar="FILE", help="write what was planned, to be replayed")


def add_pace(parser: argparse.ArgumentParser) -> None:
    """When requests leave, and when they end."""
    flags = parser.add_argument_group("when requests leave")
    pace = flags.add_mutually_exclusive_group()
    pace.add_argument("--concurrency", type=int, metavar="N", help="closed loop: requests at a time (default: 4)")
    pace.add_argument("--rate", metavar="R", help="open loop: arrivals per second; 2..20 is a ramp from 2 to 20")
    flags.add_argument(
        "--arrivals",
        metavar="KIND",
        help="of an open loop: poisson, constant, or gamma:0.5 with that shape, 1 is Poisson, and the smaller, the "
        "burstier (default: poisson)",
    )
    flags.add_argument(
        "--requests", type=int, metavar="N", help="at most so many (default: 64; all within --duration, or of a trace)"
    )
    flags.add_argument("--duration", type=float, metavar="SECONDS", help="send nothing later than this")
    flags.add_argument(
        "--max-in-flight", type=int, metavar="N", help="open loop: hold back what is due while so many are under way"
    )
    flags.add_argument(
        "--stop-over-saturated", action="store_true", help="end an open loop that the server cannot keep up with"
    )
    flags.add_argument(
        "--warmup",
        type=int,
        metavar="N",
        help="requests before the run that do not count (default: one, then as many as at a time)",
    )


def add_contents(parser: argparse.ArgumentParser) -> None:
    """What the requests are."""
    flags = parser.add_argument_group("what requests are")
    flags.add_argument(
        "--prompt-tokens",
        metavar="L",
        help="128: all of that length; 128~0.3: lognormal, that mean and sigma; 0.7x128~0.3+0.3x2048: a mixture "
        "(default: 128~0.3)",
    )
    flags.add_argument("--output-tokens", metavar="L", help="the same (default: 64~0.3)")
    flags.add_argument(
        "--lengths", type=Path, metavar="FILE", help="draw lengths of prompt and answer together from this CSV or trace"
    )
    flags.add_argument(
        "--trace",
        type=Path,
        metavar="FILE",
        help="replay times and lengths of Azure's or BurstGPT's CSV or Mooncake's JSON lines; beside --concurrency, "
        "the lengths alone",
    )
    flags.add_argument(
        "--speed-up", type=float, default=1.0, metavar="X", help="replay so many times as fast (default: 1)"
    )
    flags.add_argument(
        "--prompts",
        type=Path,
        metavar="FILE",
        help="send these: JSON lines with a prompt or messages, or ShareGPT's conversations (default: plain words)",
    )
    flags.add_argument(
        "--tokenizer",
        type=Path,
        metavar="DIR",
        help="count the texts of --prompts with this tokenizer.json: answers are as long as those of the file",
    )
    flags.add_argument(
        "--keep-shared",
        action="store_true",
        help="let a prefix cache find what the prompts of a file share at their beginnings",
    )
    flags.add_argument(
        "--turns", default="1", metavar="L", help="of a session, each after the answer before (default: 1)"
    )
    flags.add_argument(
        "--think", default="0", metavar="S", help="seconds before each later turn: 2, or 2~0.5 (default: 0)"
    )
    flags.add_argument(
        "--shared-prefix",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="how much of each prompt others begin with, too",
    )
    flags.add_argument("--prefixes", type=int, default=1, metavar="N", help="how many such beginnings (default: 1)")
    flags.add_argument("--seed", type=int, default=0, metavar="S", help="of the schedule and the texts (default: 0)")


def other(args: argparse.Namespace, **flags: object) -> argparse.Namespace:
    """The same flags, some of them others."""
    return argparse.Namespace(**vars(args) | flags)


def contents_only(args: argparse.Namespace, **pace: object) -> argparse.Namespace:
    """Those of a command that has not all of `add_pace`. pace: what it says of it."""
    none = {"duration": None, "max_in_flight": None, "stop_over_saturated": False, "warmup": None}
    return other(args, **none | pace)


def read(args: argparse.Namespace) -> "Schedule":
    """The schedule of a command line with all these flags."""
    from twofour.bench.load import schedule_file

    if args.schedule is None:
        return traffic(args).schedule()
    plain = argparse.ArgumentParser()
    add_pace(plain)
    add_contents(plain)
    if given := [name for name, default in vars(plain.parse_args([])).items() if getattr(args, name) != default]:
        flags = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise InputError(f"the file of --schedule says what is sent and when; leave {flags} away")
    return schedule_file.read(args.schedule)


def traffic(args: argparse.Namespace) -> "Traffic":
    """The same before it is made: `dataclasses.replace` gives it another rate, concurrency or seed."""
    from twofour.bench.traffic import conversations, traces
    from twofour.bench.traffic.lengths import pause, tokens
    from twofour.bench.traffic.traffic import ANSWERS, PROMPTS, Traffic

    _refuse_together(args)
    trace = args.trace and traces.read(args.trace)
    rate = None if args.rate is None else _rate(args.rate, args.arrivals)
    timed = rate is not None or (trace is not None and trace.rows[0].at_s is not None)
    return Traffic(
        requests=_REQUESTS if args.requests is None and args.duration is None and not trace else args.requests,
        concurrency=_CONCURRENCY if args.concurrency is None and not timed else args.concurrency,
        rate=rate,
        prompt_tokens=tokens(args.prompt_tokens) if args.prompt_tokens else PROMPTS,
        output_tokens=tokens(args.output_tokens) if args.output_tokens else ANSWERS,
        pairs=args.lengths and traces.read(args.lengths),
        trace=trace,
        speed_up=args.speed_up,
        conversations=args.prompts and conversations.read(args.prompts, args.tokenizer),
        keep_shared=args.keep_shared,
        turns=tokens(args.turns),
        think=pause(args.think),
        shared_prefix=args.shared_prefix,
        prefixes=args.prefixes,
        seed=args.seed,
        limits=_limits(args),
    )


def _rate(text: str, arrivals: str | None) -> "Rate":
    """Read `8` or `2..20`, and `poisson`, `constant` or `gamma:0.5`."""
    from twofour.bench.traffic.traffic import Rate

    first, ramp, last = text.partition("..")
    kind, _, shape = (arrivals or "poisson").partition(":")
    try:
        shapes = {"poisson": 1.0, "constant": None, "gamma": float(shape) if kind == "gamma" else 1.0}
        return Rate(float(first), float(last) if ramp else None, shapes[kind])
    except (ValueError, KeyError):
        raise InputError(
            f"--rate {text} --arrivals {arrivals or 'poisson'} is no process of arrivals; write 8 or 2..20, and "
            "poisson, constant or gamma:0.5"
        ) from None


def _limits(args: argparse.Namespace) -> "Limits":
    from twofour.bench.load.workload import Limits

    if args.duration is not None and not 0 < args.duration < inf:
        raise InputError(f"a load of {args.duration:g} s; --duration is a number above 0")
    if args.max_in_flight is not None and args.max_in_flight < 1:
        raise InputError(f"{args.max_in_flight} requests in flight; --max-in-flight is at least 1")
    if args.warmup is not None and args.warmup < 0:
        raise InputError(f"{args.warmup} requests of warm-up; --warmup is at least 0")
    return Limits(args.duration, args.max_in_flight, args.stop_over_saturated, args.warmup)


def _refuse_together(args: argparse.Namespace) -> None:
    """Flags of which one would have no effect beside the other."""
    texts = [args.trace, args.prompts, args.lengths]
    closed = (args.rate is None and args.trace is None) or args.concurrency is not None
    wrong = {
        "--trace, --prompts and --lengths each say what is sent": sum(map(bool, texts)) > 1,
        "--trace says what is sent; --prompt-tokens and --output-tokens are for words": args.trace
        and (args.prompt_tokens or args.output_tokens),
        "--lengths says how long they are; --prompt-tokens and --output-tokens do, too": args.lengths
        and (args.prompt_tokens or args.output_tokens),
        "--prompts says what is sent; --prompt-tokens is for words": args.prompts and args.prompt_tokens,
        "--trace says when; --rate does, too": args.trace and args.rate is not None,
        "--speed-up is of --trace": args.speed_up != 1 and not args.trace,
        "--keep-shared is of --prompts": args.keep_shared and not args.prompts,
        "--tokenizer is of --prompts": args.tokenizer and not args.prompts,
        "--trace has no sessions; --turns is for words and --prompts": args.trace and args.turns != "1",
        "--think is of --turns": args.think != "0" and args.turns == "1",
        "--shared-prefix is for words": args.shared_prefix and (args.trace or args.prompts),
        "--prefixes is of --shared-prefix": args.prefixes != 1 and not args.shared_prefix,
        "--arrivals is of --rate": args.arrivals and args.rate is None,
        "--max-in-flight is of an open loop": args.max_in_flight is not None and closed,
        "--stop-over-saturated is of an open loop": args.stop_over_saturated and closed,
        "--stop-over-saturated counts what is under way, --max-in-flight limits it": args.stop_over_saturated
        and args.max_in_flight is not None,
    }
    for why, true in wrong.items():
        if true:
            raise InputError(f"{why}; leave one away")
