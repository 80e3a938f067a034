"""What load this machine can measure honestly: the client against the mock, at several loads, and the seeded defects.

A load is honest where the client adds little to the truth and the run's own gates let it pass. One that is not honest
although the gates pass it is what must not be.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from twofour.bench.load.gates import failed
from twofour.bench.proof import defects
from twofour.bench.proof.defects import Finding
from twofour.bench.proof.mock import Script
from twofour.bench.proof.truth import Added, added, against, apart, closed
from twofour.prune.progress import Progress, counter

KIND = "twofour.bench.selftest"
SCHEMA_VERSION = 1
FIRST_S = 0.1  # what the mock takes for a first token
MOST_MEAN_S, MOST_P99_S, MOST_TPOT = 0.0015, 0.005, 0.002  # what a client may add at an honest load
PROMPT, OUTPUT = 32, 64


@dataclass(frozen=True)
class Load:
    """So many streams at a time, a token every `token_s` in each."""

    streams: int
    token_s: float


@dataclass(frozen=True)
class Measured:
    """One load. flagged: the gates that failed."""

    streams: int
    tokens_per_s: float | None
    added: Added
    flagged: list[str]

    @property
    def honest(self) -> bool:
        late = self.added.mean_s > MOST_MEAN_S or self.added.p99_s > MOST_P99_S
        return not late and self.added.tpot_error <= MOST_TPOT and not self.flagged

    @property
    def verdict(self) -> str:
        if self.honest:
            return "honest"
        return f"flagged: {', '.join(self.flagged)}" if self.flagged else "BLURRED, and no gate says so"


@dataclass(frozen=True)
class Speed:
    """What one client process does in bursts, from a mock that never waits."""

    requests_per_s: float | None  # streamed, of 8 tokens
    tokens_per_s: float | None  # in streams of 512


LOADS = (Load(4, 0.01), Load(32, 0.01), Load(64, 0.01), Load(128, 0.02), Load(256, 0.02))


def measure_load(load: Load, rounds: int, cpu: int | None) -> Measured:
    schedule = closed(load.streams * rounds, PROMPT, OUTPUT, load.streams)
    run, mock = against(Script(first_token_s=FIRST_S, token_s=load.token_s), schedule, cpu)
    names = [gate.name for gate in failed(run.gates)]
    return Measured(load.streams, run.summary.output_tokens_per_s, added(run, mock), names)


def measure_speed(requests: int, cpu: int | None) -> Speed:
    short, _ = against(Script(), closed(requests, 8, 8, 64, sigma=0.0), cpu)
    long, _ = against(Script(), closed(max(64, requests // 16), 8, 512, 64, sigma=0.0), cpu)
    return Speed(short.summary.requests_per_s, long.summary.output_tokens_per_s)


def selftest(loads: Sequence[Load], rounds: int, requests: int, progress: Progress) -> dict[str, Any]:
    """Everything, as a document. rounds: answers of each stream; requests: of the bursts."""
    step = counter("selftest", len(loads) + 1 + len(defects.DEFECTS), progress)
    with apart() as cpu:
        measured = []
        for load in loads:
            measured.append(measure_load(load, rounds, cpu))
            step()
        speed = measure_speed(requests, cpu)
        step()
        findings = []
        for defect in defects.DEFECTS:
            findings.append(defect.find(cpu))
            step()
    return document(measured, speed, findings, apart=cpu is not None)


def document(measured: Sequence[Measured], speed: Speed, findings: Sequence[Finding], apart: bool) -> dict[str, Any]:
    missed = [each for each in findings if each.outcome == "missed"]
    blurred = [each for each in measured if not each.honest and not each.flagged]
    honest = [each for each in measured if each.honest]
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "mock_on_a_cpu_of_its_own": apart,
        "loads": [asdict(each) | {"honest": each.honest, "verdict": each.verdict} for each in measured],
        "speed": asdict(speed),
        "defects": [asdict(each) for each in findings],
        "honest_streams": max((each.streams for each in honest), default=0),
        "valid": not missed and not blurred,
    }


def table(found: dict[str, Any]) -> str:
    speed, streams = found["speed"], found["honest_streams"]
    apart = "on a CPU of its own" if found["mock_on_a_cpu_of_its_own"] else "on the same CPU"
    lines = [
        f"the client against a server that knows the truth, {apart}",
        "",
        f"{'streams':>8}{'tokens/s':>10}{'TTFT':>10}{'added mean':>12}{'p99':>10}{'TPOT off by':>13}",
        *map(_row, found["loads"]),
        "",
        f"one client process: {_number(speed['requests_per_s'])} streamed requests/s of 8 tokens, "
        f"{_number(speed['tokens_per_s'])} tokens/s in bursts",
        "",
        *(f"  {each['outcome']:14}{each['defect']}: {each['how']}" for each in found["defects"]),
        "",
        f"This machine measures up to {streams} streams honestly: the client adds at most {MOST_MEAN_S * 1000:g} ms to "
        f"the mean time to the first token, {MOST_P99_S * 1000:g} ms to its p99, {MOST_TPOT:.1%} to TPOT."
        if streams
        else "Not one of these loads was honest: stop what else runs here, or give the client a CPU of its own.",
        "PASSED: what is not honest is flagged" if found["valid"] else "FAILED: something blurs the numbers unnoticed",
    ]
    return "\n".join(lines)


def _row(load: dict[str, Any]) -> str:
    of = load["added"]
    times = "".join(f"{of[name] * 1000:>{width}.2f}" for name, width in (("ttft_s", 10), ("mean_s", 12), ("p99_s", 10)))
    return (
        f"{load['streams']:>8}{_number(load['tokens_per_s']):>10}{times}{of['tpot_error']:>12.2%}   {load['verdict']}"
    )


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:,.0f}"
