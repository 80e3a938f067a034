"""The verb `convert`."""

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="a pruned folder; sparse-24-bitmask is read too")
    parser.add_argument("-o", "--out", metavar="OUT", type=Path, required=True, help="the folder to make")
    parser.add_argument("--to", choices=("packed", "dense"), required=True, help="the form of OUT")


def run(args: argparse.Namespace) -> int:
    from twofour.prune.label.convert import convert

    convert(args.folder, args.out, args.to)
    print(f"{args.out}: {args.to}")
    return 0
