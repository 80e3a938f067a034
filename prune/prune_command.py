"""The verb `prune`."""

import argparse
import json
from pathlib import Path

PRESET_HELP = (
    "fast: the solver alone; balanced (default): a better solver, then each block trained a little against the dense "
    "model; best: trained longer, at last as a whole, which needs memory for both models and the optimiser"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from twofour.prune.recipe import PruneConfig

    default = PruneConfig()
    parser.add_argument("model", metavar="MODEL", help="a dense model: a folder or a hub id")
    parser.add_argument("-o", "--out", metavar="OUT", type=Path, required=True, help="the folder to make")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--preset", choices=("fast", "balanced", "best"), help=PRESET_HELP)
    how.add_argument("--method", choices=("sparsegpt", "refine", "wanda", "magnitude"), help="a solver by name instead")
    parser.add_argument(
        "--calibration",
        default=default.calibration,
        metavar="self|FILE",
        help="text that the model samples itself, or a text file (default: %(default)s)",
    )
    parser.add_argument("--samples", type=int, default=default.samples, metavar="N", help="default: %(default)s")
    parser.add_argument(
        "--length",
        type=int,
        default=default.length,
        metavar="L",
        help="tokens of a sample (default: %(default)s)",
    )
    parser.add_argument("--seed", type=int, default=default.seed, metavar="S", help="default: %(default)s")
    parser.add_argument("--format", choices=("packed", "dense"), default=default.format, help="default: %(default)s")
    parser.add_argument(
        "--values",
        choices=("model", "int8"),
        default=default.values,
        help="of kept weights: the model's own dtype, or int8 with a scale for each row (default: %(default)s)",
    )
    parser.add_argument("--device", default=default.device, help="default: %(default)s")
    parser.add_argument("--revision", metavar="R", help="of a hub id")
    parser.add_argument("--plan", action="store_true", help="say what the run would take, and prune nothing")
    parser.add_argument("--json", action="store_true", help="print the manifest, or the plan, instead of a summary")


def run(args: argparse.Namespace) -> int:
    from twofour.prune.progress import to_stderr
    from twofour.prune.recipe import PruneConfig
    from twofour.prune.run import prune

    config = PruneConfig(
        preset=args.preset,
        method=args.method,
        calibration=args.calibration,
        samples=args.samples,
        length=args.length,
        seed=args.seed,
        format=args.format,
        values=args.values,
        device=args.device,
        revision=args.revision,
    )
    if args.plan:
        from twofour.prune.plan import plan

        planned = plan(args.model, config)
        print(json.dumps(planned.as_dict()) if args.json else planned)
        return 0
    report = prune(args.model, args.out, config, to_stderr())
    print(json.dumps(report.manifest, allow_nan=False) if args.json else report)
    return 0
