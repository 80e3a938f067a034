"""`python -m twofour.bench.gpu`: the session, its stages one after the other, each over by its time.

A stage is a process of its own: one that hangs is ended, one that dies is started again behind the cell that it died
in, and the next one begins either way. What is there already, of the same code on the same device, is not measured
again.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from twofour.bench.gpu.day import GRACE_S, STAGES

FAILED, NOTHING_MEASURED = 1, 3
MOST_STARTS = 3
DEVICE = "import torch; raise SystemExit(not torch.cuda.is_available())"


@dataclass(frozen=True)
class Ended:
    """`status`: of the stage's last process; None: it was ended, or there was no time for it."""

    stage: str
    status: int | None
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    args = _parser().parse_args(argv)
    if not args.command and subprocess.run([sys.executable, "-c", DEVICE]).returncode:
        _say("nothing was measured: torch finds no CUDA device here")
        return NOTHING_MEASURED
    args.results.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    ended = [_stage(stage, args, began + STAGES[stage]) for stage in args.stages.split(",")]
    took = time.monotonic() - began
    _say(f"{len(ended)} stages in {took:.0f} s; the rows are in {args.results}, twofour bench report prints them")
    return FAILED if any(each.status != 0 for each in ended) else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m twofour.bench.gpu", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("bench/results"), metavar="DIR")
    parser.add_argument("--stages", default=",".join(STAGES), metavar="LIST", help="default: all (%(default)s)")
    parser.add_argument("--tests", type=Path, metavar="DIR", help="the tests that the stage of that name runs")
    parser.add_argument("--command", type=Path, metavar="FILE", help="run this program as the stages (a rehearsal)")
    return parser


def _stage(stage: str, args: argparse.Namespace, until: float) -> Ended:
    """Start a stage, and again where its process died, as long as there is time."""
    began, status = time.monotonic(), None
    for start in range(MOST_STARTS):
        seconds = until - time.monotonic()
        if seconds <= 0:
            break
        status = _run([*_command(stage, args, seconds), *(["--keep-failures"] if start else [])], seconds + GRACE_S)
        if status in (0, FAILED, None):
            break
    ended = Ended(stage, status, time.monotonic() - began)
    _say(f"{stage}: {_ending(status)}, {ended.seconds:.1f} s")
    return ended


def _command(stage: str, args: argparse.Namespace, seconds: float) -> list[str]:
    program = [str(args.command)] if args.command else ["-m", "twofour.bench.gpu.stage"]
    tests = ["--tests", str(args.tests)] if args.tests else []
    return [sys.executable, *program, stage, "--results", str(args.results), "--seconds", f"{seconds:.1f}", *tests]


def _run(command: Sequence[str], limit_s: float) -> int | None:
    try:
        return subprocess.run(command, stdin=subprocess.DEVNULL, timeout=limit_s).returncode
    except subprocess.TimeoutExpired:
        return None


def _ending(status: int | None) -> str:
    if status is None:
        return "ended for want of time"
    return {0: "done", FAILED: "done, with failures"}.get(status, f"died with status {status}")


def _say(line: str) -> None:
    print(f"gpu: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
