"""The verb `bench kernels`: the 2:4 multiplication against the ceiling and against dense, by matrix and tokens."""

import argparse
import json
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from twofour.bench.commands import INVALID
from twofour.prune.errors import InputError, OutputError

if TYPE_CHECKING:
    from twofour.bench.kernels.grid import Grid

SLOWER = 4  # the exit status where --verify-never-slower found something slower
TOKENS = "1,2,4,8,16,32,64,128,256,512"
ISAS = ("avx2", "avx512", "avx512bf16")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Multiply by random weights of a model's shapes, 2:4 and dense, in turns and with cold caches. The machine's "
        "bandwidth and the ceiling it implies come first. Exit status 3: nothing or not all was measured, a "
        f"contender was wrong or failed, or a validity gate did; {SLOWER}: --verify-never-slower failed."
    )
    source = parser.add_mutually_exclusive_group()
    source.add_argument("--model", type=Path, metavar="DIR", help="the shapes of a model folder, packed or dense")
    source.add_argument(
        "--shapes", default="smollm2-135m", metavar="LIST", help="of known models, by commas (default: %(default)s)"
    )
    parser.add_argument("--tokens", default=TOKENS, metavar="LIST", help="in one call (default: %(default)s)")
    parser.add_argument(
        "--threads", type=int, default=1, metavar="N", help="1: CPU time, more: wall clock (default: 1)"
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="default: %(default)s")
    parser.add_argument("--isa", choices=ISAS, help="hold our CPU kernels, and torch, to an instruction set")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="pairs of each ratio (default: 7)")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the weights (default: 0)")
    parser.add_argument(
        "--verify-never-slower",
        action="store_true",
        help=f"exit with status {SLOWER} where what is served is slower than torch dense",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="the document, with every round, written after each cell"
    )
    parser.add_argument("--json", action="store_true", help="print the document instead of the table")


def run(args: argparse.Namespace) -> int:
    from twofour.bench.kernels import isa

    if args.isa:
        isa.hold_torch(args.isa)
    import torch

    from twofour.bench import interrupt
    from twofour.bench.hardware import provenance
    from twofour.bench.kernels.document import document
    from twofour.bench.kernels.measure import Findings, measure
    from twofour.bench.kernels.table import table
    from twofour.prune import out
    from twofour.prune.format.folder import write_whole
    from twofour.prune.progress import to_stderr

    grid = _grid(args)
    out.claim(args.out)
    made_by, torch_isa = provenance(), torch.backends.cpu.get_cpu_capability()

    def made(found: Findings) -> dict[str, Any]:
        return document(found, made_by, torch_isa, isa.torch_environment())

    def keep(found: Findings) -> None:
        """Write what was found so far. Where that fails the measurement goes on: it may work at the end."""
        if args.out:
            with suppress(OutputError):
                write_whole(args.out, json.dumps(made(found), allow_nan=False) + "\n")

    with interrupt.in_order():
        result = made(measure(grid, to_stderr(), keep))
        text = json.dumps(result, allow_nan=False)
        out.deliver(text if args.json else table(result), args.out, text)
    return status(result, args.verify_never_slower)


def status(document: dict[str, Any], verify: bool) -> int:
    """A slower cell outweighs a busy machine, which may have been the cause: both are in the table."""
    if verify and document["never_slower"]["passed"] is False:
        return SLOWER
    return 0 if document["valid"] else INVALID


def _grid(args: argparse.Namespace) -> "Grid":
    from twofour.bench.kernels.grid import Grid, of_folder, of_shape
    from twofour.prune.format.folder import resolve

    if args.isa and args.device == "cuda":
        raise InputError("--isa is of the CPU kernels; leave it out with --device cuda")
    models = [of_folder(resolve(str(args.model)))] if args.model else map(of_shape, args.shapes.split(","))
    return Grid(
        models=tuple(models),
        tokens=_integers(args.tokens),
        device=args.device,
        threads=args.threads,
        rounds=args.rounds,
        seed=args.seed,
        isa=args.isa,
    )


def _integers(text: str) -> tuple[int, ...]:
    try:
        return tuple(sorted(int(word) for word in text.split(",")))
    except ValueError as error:
        raise InputError(f"--tokens {text} is no list of numbers; give some like 1,8,64") from error
