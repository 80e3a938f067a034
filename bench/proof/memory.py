"""How much memory a load test of an hour takes: `python -m twofour.bench.proof.memory`, some minutes.

The client: `bench run` as a process of its own, with a document, for as many tokens as an hour at 5,000 a second has;
its mock never waits, so no hour need pass. The evaluation: the records of such an hour, made up, through all that a run
does with them.
"""

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from twofour.bench.proof.mock import Script, serving
from twofour.prune.errors import ServerError

HOUR_S = 3600
HOUR_TOKENS = 18_000_000  # 5,000 a second
STREAMS = 100
ANSWER = 512  # tokens
PROMPT = 64
INVALID = 3  # the exit status of a verb whose machine was busy: its memory is what it is


def peak_bytes(command: Sequence[str]) -> int:
    """Resident at most, of a process that ends by itself."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, INVALID):
        raise ServerError(f"{command[2]} ended with status {process.returncode}; what it said is above")
    return usage.ru_maxrss * 1024


def client(tokens: int) -> int:
    """Peak of `bench run` with a document, while a mock that never waits sends it so many."""
    with TemporaryDirectory() as folder, serving(Script(remembers=False)) as mock:
        load = ["--requests", tokens // ANSWER, "--concurrency", STREAMS, "--output-tokens", ANSWER]
        out = ["--prompt-tokens", PROMPT, "--out", Path(folder, "run.json")]
        return peak_bytes([sys.executable, "-m", "twofour", "bench", "run", mock.url, *map(str, load + out)])


def evaluate(tokens: int) -> None:
    """What `measure` and the verb do with the records of so many tokens."""
    from dataclasses import replace
    from datetime import UTC, datetime

    import numpy as np

    from twofour.bench.load import gates, metrics, run, slo
    from twofour.bench.load.records import Chunks, Record
    from twofour.bench.load.service import Service
    from twofour.bench.load.workload import Lengths, synthetic
    from twofour.prune.format.folder import write_whole

    draw, count = np.random.default_rng(0), tokens // ANSWER
    schedule = synthetic(count, Lengths(PROMPT), Lengths(ANSWER), 0, concurrency=STREAMS)
    records = []
    for index in range(count):
        sent = HOUR_S * index / count
        at = sent + 0.1 + np.cumsum(draw.exponential(0.02, ANSWER))
        chunks = Chunks(at, np.ones(ANSWER, np.uint8))
        records.append(Record(index, sent, sent, float(at[0]), chunks, float(at[-1]), PROMPT, ANSWER, status=200))
    checked = gates.check(schedule, records, [0.0], 0.0)
    done = run.Run(
        *(Service("http://127.0.0.1", "m"), schedule, "nonce", datetime.now(UTC), 0.0, records),
        metrics.summarise(records, 0.0),
        checked,
    )
    done = replace(done, slo=slo.attain(slo.parse("ttft_p95=500ms,itl_p95=50ms,tpot=1s"), records))
    with TemporaryDirectory() as folder:
        write_whole(Path(folder, "run.json"), run.pieces(done, {}))


def evaluation(tokens: int) -> int:
    """Peak of `evaluate`, in a process of its own."""
    return peak_bytes([sys.executable, "-m", "twofour.bench.proof.memory", "--evaluate", str(tokens)])


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m twofour.bench.proof.memory", description=__doc__)
    parser.add_argument("--tokens", type=int, default=HOUR_TOKENS, metavar="N", help="default: 18 million, an hour's")
    parser.add_argument("--evaluate", type=int, metavar="N", help="only the records of so many tokens, in this process")
    args = parser.parse_args()
    if args.evaluate:
        evaluate(args.evaluate)
        return 0
    for what, peak in (("the client", client), ("the evaluation alone", evaluation)):
        print(f"{what}, {args.tokens:,} tokens: {peak(args.tokens) / 1e6:,.0f} MB at most")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
