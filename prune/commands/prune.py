"""The verb `prune`."""

import argparse
import json
from pathlib import Path
from typing import get_args

PRESET_HELP = (
    "fast: the solver alone; balanced (default): a better solver, kept weights trained block by block, then all of "
    "them to predict what the dense model predicts, each once through the text; best: the latter {passes} times, on "
    "more text"
)
CALIBRATION_HELP = (
    "self: text that the model writes; chat: conversations that it writes, through its chat template; FILE: .txt, or "
    ".jsonl with a text, or messages, on each line; self:FILE: text that the model writes, begun with pieces of FILE; "
    "hub:OWNER/NAME[@REVISION][/CONFIG][:SPLIT[:COLUMN]]: a data set; given several times, the sources share the "
    "samples (default: self, with chat beside it for a chat model)"
)

TOKENS_HELP = (
    "train the whole model on N tokens of fresh text from the same sources (as 500k or 10M), instead of going through "
    "the calibration text again"
)

COUNTS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9}
UNITS = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30, "KB": 10**3, "MB": 10**6, "GB": 10**9}


def memory_size(text: str) -> int:  # bytes
    """Read a size as 8GiB. Raises argparse.ArgumentTypeError, for the parser to show."""
    unit = text.lstrip("0123456789. ")
    try:
        return round(float(text.removesuffix(unit)) * UNITS[unit])
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; give one as 8GiB or 500MB") from None


def budgets(text: str) -> tuple[float, ...]:
    """Read budgets as 0.33,0.40. Raises argparse.ArgumentTypeError, for the parser to show."""
    try:
        return tuple(float(each) for each in text.split(","))
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} are no budgets; give them as 0.33,0.40") from None


def count(text: str) -> int:
    """Read a number as 10M. Raises argparse.ArgumentTypeError, for the parser to show."""
    unit = text.lstrip("0123456789.")
    try:
        return round(float(text.removesuffix(unit)) * COUNTS[unit])
    except (KeyError, ValueError):
        raise argparse.ArgumentTypeError(f"{text!r} is no number; give one as 500000, 500k or 10M") from None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from twofour.prune.config import PRESETS, BudgetFor, Method, Precision, Preset, PruneConfig, Train, Values
    from twofour.prune.format import Format

    default, best = PruneConfig(), PRESETS["best"]
    presets = PRESET_HELP.format(passes=best.model_passes)
    by_preset = ", ".join(f"{stages.samples} for {name}" for name, stages in PRESETS.items())
    parser.add_argument("model", metavar="MODEL", help="a dense model: a folder or a hub id")
    parser.add_argument("-o", "--out", metavar="OUT", type=Path, required=True, help="the folder to make")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--preset", choices=get_args(Preset), help=presets)
    how.add_argument("--method", choices=get_args(Method), help="a solver by name instead")
    parser.add_argument(
        "--train",
        choices=get_args(Train),
        default=default.train,
        help="kept weights all at once, or block by block in little memory (default: all, where memory allows it)",
    )
    parser.add_argument(
        "--calibration",
        action="append",
        metavar="SOURCE",
        help=CALIBRATION_HELP,
    )
    parser.add_argument("--samples", type=int, metavar="N", help=f"of the text (default: {by_preset})")
    parser.add_argument(
        "--length",
        type=int,
        default=default.length,
        metavar="L",
        help="tokens of a sample (default: %(default)s)",
    )
    stream = parser.add_mutually_exclusive_group()
    stream.add_argument("--tokens", type=count, metavar="N", help=TOKENS_HELP)
    stream.add_argument("--minutes", type=float, metavar="M", help="the same, on as many tokens as M minutes allow")
    parser.add_argument("--seed", type=int, default=default.seed, metavar="S", help="default: %(default)s")
    parser.add_argument("--format", choices=get_args(Format), default=default.format, help="default: %(default)s")
    parser.add_argument(
        "--values",
        choices=get_args(Values),
        help="of kept weights: the model's own dtype, or int8 with a scale for each row (default: model; with a budget "
        "whichever is best, of each linear)",
    )
    asked = parser.add_mutually_exclusive_group()
    asked.add_argument(
        "--budget",
        type=float,
        metavar="SHARE",
        help="of what the dense linears cost, as 0.40: those that lose least for it become 2:4, or int8",
    )
    asked.add_argument(
        "--max-kl", type=float, metavar="NATS", help="the cheapest mixture that is so close to dense before training"
    )
    asked.add_argument(
        "--frontier", type=budgets, metavar="SHARE,...", help="several budgets: OUT/0.33, OUT/0.40 and so on"
    )
    parser.add_argument(
        "--budget-for",
        choices=get_args(BudgetFor),
        default=default.budget_for,
        help="what costs: bytes, seconds of a token, or of a prompt (default: %(default)s)",
    )
    parser.add_argument(
        "--card", metavar="GPU", help="whose seconds are estimated, as H100 (default: they are timed on --device)"
    )
    parser.add_argument(
        "--lm-head",
        choices=get_args(Values),
        default=default.lm_head,
        help="its dense weight: as in the model, or int8 with a scale for each 64 columns (default: %(default)s)",
    )
    parser.add_argument(
        "--keep-dense",
        action="append",
        metavar="PATTERN",
        help="linears that stay dense, by name: '*.layers.29.*', '*.down_proj'; may be given several times",
    )
    parser.add_argument(
        "--keep-dense-values",
        choices=get_args(Values),
        default=default.keep_dense_values,
        help="of those: as in the model, or int8 with a scale for each 64 columns (default: %(default)s)",
    )
    parser.add_argument(
        "--dtype",
        choices=get_args(Precision),
        default=default.dtype,
        help="of forwards; auto: the model's own, or float32 where a CPU is slow in that (default: %(default)s)",
    )
    parser.add_argument("--device", default=default.device, help="default: %(default)s")
    parser.add_argument(
        "--memory-limit",
        type=memory_size,
        metavar="SIZE",
        help="as 8GiB: beyond it hidden states go to disk, then blocks are trained alone, or the run is refused",
    )
    parser.add_argument("--revision", metavar="R", help="of a hub id")
    parser.add_argument("--plan", action="store_true", help="say what the run would take, and prune nothing")
    parser.add_argument("--json", action="store_true", help="print the manifest, or the plan, instead of a summary")


def run(args: argparse.Namespace) -> int:
    from twofour.prune.config import PruneConfig
    from twofour.prune.progress import to_stderr
    from twofour.prune.run.prune import prune

    config = PruneConfig(
        preset=args.preset,
        method=args.method,
        train=args.train,
        calibration=tuple(args.calibration) if args.calibration else None,
        samples=args.samples,
        length=args.length,
        tokens=args.tokens,
        minutes=args.minutes,
        seed=args.seed,
        format=args.format,
        values=args.values,
        lm_head=args.lm_head,
        keep_dense=tuple(args.keep_dense or ()),
        keep_dense_values=args.keep_dense_values,
        budget=args.budget,
        max_kl=args.max_kl,
        frontier=args.frontier or (),
        budget_for=args.budget_for,
        card=args.card,
        dtype=args.dtype,
        device=args.device,
        memory_limit_bytes=args.memory_limit,
        revision=args.revision,
    )
    if args.plan:
        from twofour.prune.run.plan import plan

        planned = plan(args.model, config, args.new_clock(args.device), args.new_writer)
        print(json.dumps(planned.as_dict()) if args.json else planned)
        return 0
    handed_in = args.new_clock(args.device), args.new_writer
    if config.frontier:
        from twofour.prune.run.frontier import frontier

        found = frontier(args.model, args.out, config, to_stderr(), *handed_in)
        print(json.dumps(found.as_dict(), allow_nan=False) if args.json else found)
        return 0
    report = prune(args.model, args.out, config, to_stderr(), *handed_in)
    print(json.dumps(report.manifest, allow_nan=False) if args.json else report)
    return 0
