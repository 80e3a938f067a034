"""`make bench-proof`: measure the table, print it, keep it. Takes less than ten minutes; let nothing else run."""

import argparse
import json
import sys
from pathlib import Path

from twofour.bench import interrupt
from twofour.bench.hardware import circumstances
from twofour.bench.proof.peers import peers
from twofour.bench.proof.proof import SMALL, Size, prove
from twofour.bench.proof.proof_table import table
from twofour.prune import out
from twofour.prune.progress import to_stderr

NOT_KEPT = 3  # the exit status, as of a verb whose result does not count


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m twofour.bench.proof", description=__doc__)
    parser.add_argument(
        "--peers", type=Path, default=Path(".peers"), metavar="DIR", help="where GuideLLM and AIPerf are"
    )
    parser.add_argument("--vllm", type=Path, default=Path(".vllm"), metavar="DIR", help="the environment of vLLM")
    parser.add_argument("--tokenizer", type=Path, required=True, metavar="DIR", help="a model folder, for the peers")
    parser.add_argument("--small", action="store_true", help="little of everything: does it work at all?")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help="write the document here")
    args = parser.parse_args()
    out.require_folder(args.out)  # a file of before is replaced: it is kept in the repository
    about, rivals = circumstances(), peers(args.peers.absolute(), args.vllm.absolute())
    with interrupt.in_order():
        size = SMALL if args.small else Size()
        found = prove(size, rivals, args.tokenizer.absolute(), to_stderr()) | about
    found["command"] = ["python", "-m", "twofour.bench.proof", *sys.argv[1:]]
    out.deliver(table(found), args.out, json.dumps(found, allow_nan=False, indent=1) + "\n")
    return 0 if found["valid"] else NOT_KEPT


if __name__ == "__main__":
    raise SystemExit(main())
