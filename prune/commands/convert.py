"""The verb `convert`."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="a pruned folder, one of compressed-tensors too")
    parser.add_argument("-o", "--out", metavar="OUT", type=Path, required=True, help="the folder to make")
    parser.add_argument("--to", choices=("packed", "dense"), default="packed", help="the form of OUT (packed)")


def run(args: argparse.Namespace) -> int:
    from twofour.prune.label.convert import convert
    from twofour.prune.label.publish import CONVERTED

    label = convert(args.folder, args.out, args.to)
    print(f"{args.out}: {args.to}, {len(label['linears'])} linears 2:4, {len(label.get('dense') or ())} left dense")
    if CONVERTED in label and not label["quality"]:
        print(f'quality: not known here; "twofour eval {args.out} --baseline DENSE --label" measures it')
    return 0
