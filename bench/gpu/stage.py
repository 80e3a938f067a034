"""One stage, in a process of its own: `python -m twofour.bench.gpu.stage STAGE --results DIR --seconds S`."""

import argparse
import sys
import time
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path

from twofour.bench.gpu.day import FULL, STAGES, Day
from twofour.bench.gpu.sheet import Sheet, made_by


def main(day: Day = FULL, argv: Sequence[str] | None = None) -> int:
    """1: a row failed."""
    args = _parser().parse_args(argv)
    until = time.monotonic() + args.seconds
    stage = import_module(f"twofour.bench.gpu.{args.stage}")
    sheet = Sheet(args.results, args.stage, made_by(day.device), until, args.keep_failures)
    stage.run(args.tests if args.stage == "tests" else day, sheet)
    return int(any("failed" in row for row in sheet.rows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m twofour.bench.gpu.stage", description=__doc__)
    parser.add_argument("stage", choices=list(STAGES))
    parser.add_argument("--results", type=Path, required=True, metavar="DIR")
    parser.add_argument("--seconds", type=float, required=True, metavar="S", help="after which nothing more is begun")
    parser.add_argument("--tests", type=Path, metavar="DIR")
    parser.add_argument("--keep-failures", action="store_true", help="what failed is not tried again")
    return parser


if __name__ == "__main__":
    sys.exit(main())
