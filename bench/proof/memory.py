"""How much memory a long load test takes: `python -m twofour.bench.proof.memory`, some minutes.

The client: `bench run` as a process of its own, with a document, on a mock that sends `--rate` tokens a second; once
for a short time and once for a longer one. What the second takes more, by the tokens that it has more, gives that of an
hour at 5,000 tokens a second. The evaluation: the records of such an hour, made up, through all that a run does with
them; no hour need pass.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from twofour.bench.proof.mock import Script, serving
from twofour.prune.errors import ServerError

HOUR_S = 3600
HOUR_TOKENS = 18_000_000  # 5,000 a second
STREAMS = 100
ANSWER = 512  # tokens
PROMPT = 64
_MIB = 2**20
INVALID = 3  # the exit status of a verb whose machine was busy: its memory is what it is


def peak_bytes(command: Sequence[str]) -> int:
    """Resident at most, of a process that ends by itself."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode not in (0, INVALID):
        raise ServerError(f"{command[2]} ended with status {process.returncode}; what it said is above")
    return usage.ru_maxrss * 1024


def client(seconds: float, rate: float) -> tuple[int, int]:
    """Peak, and the tokens that came."""
    with TemporaryDirectory() as folder, serving(Script(token_s=STREAMS / rate)) as mock:
        out = Path(folder, "run.json")
        requests = max(STREAMS, round(seconds * rate / ANSWER))
        load = ["--requests", requests, "--concurrency", STREAMS, "--output-tokens", ANSWER, "--prompt-tokens", PROMPT]
        peak = peak_bytes(
            [sys.executable, "-m", "twofour", "bench", "run", mock.url, "--out", str(out), *map(str, load)]
        )
        return peak, json.loads(out.read_text())["summary"]["output_tokens"]


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


def measured(rate: float, short_s: float, long_s: float) -> dict[str, Any]:
    few, many = client(short_s, rate), client(long_s, rate)
    each = (many[0] - few[0]) / (many[1] - few[1])
    of_records = peak_bytes([sys.executable, "-m", "twofour.bench.proof.memory", "--evaluate", str(HOUR_TOKENS)])
    return {
        "tokens_per_s": rate,
        "client_bytes": [few[0], many[0]],
        "client_tokens": [few[1], many[1]],
        "client_bytes_per_token": each,
        "client_hour_bytes": few[0] + each * (HOUR_TOKENS - few[1]),
        "evaluation_hour_bytes": of_records,
    }


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m twofour.bench.proof.memory", description=__doc__)
    parser.add_argument("--rate", type=float, default=5000, metavar="N", help="tokens a second (default: 5000)")
    parser.add_argument("--seconds", type=float, nargs=2, default=(30, 120), metavar="S", help="of the two runs")
    parser.add_argument("--evaluate", type=int, metavar="N", help="only the records of so many tokens, in this process")
    args = parser.parse_args()
    if args.evaluate:
        evaluate(args.evaluate)
        return 0
    found = measured(args.rate, *args.seconds)
    print(json.dumps(found, indent=1))
    peaks = {"client, extrapolated": found["client_hour_bytes"], "records of an hour": found["evaluation_hour_bytes"]}
    for what, peak in peaks.items():
        print(f"{what}: {peak / _MIB:,.0f} MiB at most", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
