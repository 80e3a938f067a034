"""What servers, machines and clients do wrong, each done on purpose: does a run notice, or come to no harm?

Eleven defects that have made other load testers print wrong numbers. `neutralised`: the numbers are right all the same;
`detected`: the run says what happened, and where that spoils its numbers, it is not valid.
"""

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Literal

from twofour.bench.load.gates import PRESSURE, failed
from twofour.bench.load.metrics import first_token
from twofour.bench.load.run import Run
from twofour.bench.proof.mock import Mock, Script
from twofour.bench.proof.truth import against, closed, pairs
from twofour.prune.machine.processors import usable_cpus

STALL_S, EVERY_S = 0.04, 0.1
SLOW = Script(first_token_s=0.02, token_s=0.01)
LONG = 100_000

Outcome = Literal["neutralised", "detected", "missed", "not measured"]


@dataclass(frozen=True)
class Finding:
    defect: str
    outcome: Outcome
    how: str


@dataclass(frozen=True)
class Defect:
    """`judge` says how the run came through; what it returns first is `missed` where it did not."""

    name: str
    script: Script
    judge: Callable[[Run, Mock], tuple[Outcome, str]]
    requests: int = 40
    prompt: int = 8
    around: Callable[[], AbstractContextManager[None]] = nullcontext

    def find(self, cpu: int | None = None) -> Finding:
        with self.around():
            run, mock = against(self.script, closed(self.requests, self.prompt, 8, 4, sigma=0.0), cpu)
        return Finding(self.name, *self.judge(run, mock))


def by_gate(*names: str) -> Callable[[Run, Mock], tuple[Outcome, str]]:
    def judge(run: Run, mock: Mock) -> tuple[Outcome, str]:
        seen = [gate.name for gate in failed(run.gates) if gate.name in names]
        return ("detected", f"gate {seen[0]}") if seen else ("missed", f"no gate of {', '.join(names)} failed")

    return judge


def _as_written(run: Run, mock: Mock) -> tuple[Outcome, str]:
    """All answers were heard as they were sent: as many chunks of as many tokens, and none before it was written."""
    for record, served in pairs(run, mock):
        if record.error or [chunk.tokens for chunk in record.chunks] != [tokens for _, tokens in served.written]:
            return "missed", f"request {record.index}: {record.error or 'other chunks than were written'}"
        if first_token(record) < served.written[0][0]:
            return "missed", f"request {record.index} has its first token before it was written"
    return "neutralised", "every chunk counted once, with its tokens"


def _reconnected(run: Run, mock: Mock) -> tuple[Outcome, str]:
    outcome, how = _as_written(run, mock)
    again = run.summary.reconnects
    return (outcome, f"sent again and counted: {again}") if outcome == "neutralised" and again else ("missed", how)


def _coalesced(run: Run, mock: Mock) -> tuple[Outcome, str]:
    share = run.summary.coalesced_reads
    return ("detected", f"said: {share:.0%} of the reads") if share else ("missed", "no read brought several chunks")


def _pressed(run: Run, mock: Mock) -> tuple[Outcome, str]:
    if not PRESSURE.exists():
        return "not measured", "this kernel does not count who waits for a CPU"
    return by_gate("cpu_pressure", "send_lag_p99", "loop_lag_p99")(run, mock)


@contextmanager
def _stalls() -> Iterator[None]:
    """This process does nothing for a while, ten times a second."""
    before = signal.signal(signal.SIGALRM, lambda number, frame: time.sleep(STALL_S))
    signal.setitimer(signal.ITIMER_REAL, EVERY_S, EVERY_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, before)


@contextmanager
def _neighbours() -> Iterator[None]:
    """Two endless loops for every CPU."""
    command = [sys.executable, "-c", "while True: pass"]
    loops = [subprocess.Popen(command) for _ in range(2 * len(usable_cpus()))]
    try:
        yield
    finally:
        for loop in loops:
            loop.kill()
            loop.wait()


DEFECTS = (
    Defect("empty first chunk that names the role", Script(role_chunk=True, first_token_s=0.02), _as_written),
    Defect("four tokens in a chunk", Script(tokens_per_chunk=4), _as_written),
    Defect("several chunks in one read", Script(chunks_per_write=4), _coalesced),
    Defect("idle connections are closed just as they are used", Script(drop_reused=True), _reconnected),
    Defect(f"prompt of {LONG:,} tokens", Script(), _as_written, requests=2, prompt=LONG),
    Defect("connection cut amid a stream", Script(reset_after=2, broken_every=10), by_gate("errors")),
    Defect("5 % of the requests refused", Script(refuse_every=20), by_gate("errors")),
    Defect("answers end early", Script(stop_after=3), by_gate("output_length")),
    Defect("prompts found in a prefix cache", Script(cached_tokens=6), by_gate("prefix_cache")),
    Defect("client stalls", SLOW, by_gate("send_lag_p99", "loop_lag_p99"), around=_stalls),
    Defect("neighbours on the CPUs", SLOW, _pressed, around=_neighbours),
)


def find_all(cpu: int | None = None) -> list[Finding]:
    return [defect.find(cpu) for defect in DEFECTS]
