"""The verb `convert`."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "folder",
        metavar="DIR",
        type=Path,
        help="a pruned folder, one of compressed-tensors too; or, to dense, one that is multimodal or in FP8",
    )
    parser.add_argument("-o", "--out", metavar="OUT", type=Path, required=True, help="the folder to make")
    parser.add_argument("--to", choices=("packed", "dense"), default="packed", help="the form of OUT (packed)")


def run(args: argparse.Namespace) -> int:
    from twofour.prune.errors import InputError
    from twofour.prune.label.convert import convert
    from twofour.prune.label.publish import CONVERTED
    from twofour.prune.model import ordinary

    if ordinary.is_out_of_the_ordinary(args.folder):
        if args.to != "dense":
            raise InputError(
                f'{args.folder} is dense; run "twofour prune", or give --to dense for an ordinary folder of it'
            )
        print("\n".join([f"{args.out}: dense, nothing was pruned", *ordinary.write(args.folder, args.out)]))
        return 0
    label = convert(args.folder, args.out, args.to)
    print(f"{args.out}: {args.to}, {len(label['linears'])} linears 2:4, {len(label.get('dense') or ())} left dense")
    if CONVERTED in label and not label["quality"]:
        print(f'quality: not known here; "twofour eval {args.out} --baseline DENSE --label" measures it')
    return 0
