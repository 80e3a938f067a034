"""The table that proves the load tester: each promise, its value here, what it should be, and what others reach.

The client and the mock have a CPU each. The peers get the same loads, from mocks of their own. Statistics are tried on
simulated runs. A row that could not be measured has no value and is neither passed nor failed.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from statistics import fmean
from tempfile import TemporaryDirectory
from typing import Any

from twofour.bench.load.gates import failed
from twofour.bench.load.run import Run
from twofour.bench.load.workload import Schedule
from twofour.bench.proof import defects, gated, knee, statistics, weight
from twofour.bench.proof.mock import Mock, Script, serving
from twofour.bench.proof.peers import Asked, Figures, NoAnswer, Peer, ask
from twofour.bench.proof.truth import added, against, apart, closed, tpot
from twofour.prune.progress import Progress, counter

KIND = "twofour.bench.proof"
SCHEMA_VERSION = 1
Load = Callable[[Script, Schedule], tuple[Run, Mock]]
PACED = Script(first_token_s=0.1, token_s=0.01)
FAR = Script(first_token_s=0.1, token_s=0.01, distance_s=0.05)


@dataclass(frozen=True)
class Size:
    """How much is measured. `rounds`: answers of each stream, `bursts`: requests as fast as they go."""

    rounds: int = 6
    bursts: int = 6000
    alarms: int = 2000
    power: int = 40
    coverage: int = 300
    knee: int = 2000  # requests of each visit
    searches: int = 3


SMALL = Size(2, 400, 40, 4, 4, 150, 1)


@dataclass(frozen=True)
class Row:
    """One promise. most: whether `value` may be at most `limit`, or must be at least that. peers: name -> value."""

    id: str
    what: str
    value: float | None
    limit: float
    unit: str
    most: bool = True
    peers: dict[str, float | None] = field(default_factory=dict)
    note: str = ""
    below: float | None = None  # where `value` must be at least `limit`: what it may be at most, too

    @property
    def passed(self) -> bool | None:
        if self.value is None:
            return None
        if self.below is not None and self.value > self.below:
            return False
        return self.value <= self.limit if self.most else self.value >= self.limit


@dataclass(frozen=True)
class Rival:
    """What a peer said of a load, and the truth of the mock that it loaded: mean times in seconds."""

    figures: Figures
    ttft: float
    tpot: float


def prove(size: Size, rivals: Sequence[Peer], tokenizer: Path, progress: Progress) -> dict[str, Any]:
    step, silent, waits = counter("proof", 7, progress), dict[str, str](), list[float | None]()
    rows: list[Row] = []
    with apart() as cpu:
        for measured in (_speed, _truth, _agreement):
            rows += measured(size, Others(rivals, tokenizer, cpu, silent), partial(_against, cpu, waits))
            step()
        for alone in (_defects(cpu), _verbs(size, cpu)):
            rows += alone
            step()
    for simulated in (_statistics(size), _weight()):
        rows += simulated
        step()
    return {
        "kind": KIND,
        "schema_version": SCHEMA_VERSION,
        "size": asdict(size),
        "client_and_mock_apart": cpu is not None,
        "cpu_pressure": max((share for share in waits if share is not None), default=None),
        "silent_peers": silent,
        "rows": [asdict(row) | {"passed": row.passed} for row in rows],
        "valid": all(row.passed is not False for row in rows),
    }


def _against(cpu: int | None, waits: list[float | None], script: Script, schedule: Schedule) -> tuple[Run, Mock]:
    """Our run, and the truth of the mock. waits: gets the share of the time in which something waited for a CPU."""
    run, mock = against(script, schedule, cpu)
    waits.append(next(gate.value for gate in run.gates if gate.name == "cpu_pressure"))
    return run, mock


@dataclass(frozen=True)
class Others:
    """The peers, and what all of them need. silent: why those that said nothing did not."""

    peers: Sequence[Peer]
    tokenizer: Path
    cpu: int | None
    silent: dict[str, str]

    def ask(self, script: Script, requests: int, streams: int, prompt: int, output: int) -> dict[str, Rival]:
        load, found = Asked(requests, streams, prompt, output, self.tokenizer), {}
        for peer in self.peers:
            try:
                found[peer.name] = _rival(peer, script, load, self.cpu)
            except NoAnswer as reason:
                self.silent[f"{peer.name}, {streams} streams"] = str(reason)
        return found


def _speed(size: Size, peers: Others, load: Load) -> Iterator[Row]:
    short, _ = load(Script(), closed(size.bursts, 8, 8, 64, sigma=0.0))
    others = peers.ask(Script(), max(64, size.bursts // 10), 64, 8, 8)
    rates = {name: other.figures.requests_per_s for name, other in others.items()}
    yield Row("H1", "streamed requests a second, 8 tokens each", short.summary.requests_per_s, 1500, "/s", False, rates)
    paced, _ = load(Script(first_token_s=0.1, token_s=0.019), closed(256 * size.rounds, 8, 128, 256))
    yield Row("H2", "tokens a second, 256 streams at 19 ms", paced.summary.output_tokens_per_s, 12000, "/s", False)
    long, _ = load(Script(), closed(max(64, size.bursts // 16), 8, 512, 64, sigma=0.0))
    yield Row("H2", "tokens a second in bursts", long.summary.output_tokens_per_s, 40000, "/s", False)


def _truth(size: Size, peers: Others, load: Load) -> Iterator[Row]:
    run, mock = load(PACED, closed(32 * size.rounds, 32, 64, 32))
    others = peers.ask(PACED, 32 * size.rounds, 32, 32, 64)
    late = {name: _less(other.figures.ttft, other.ttft) for name, other in others.items()}
    off = {name: _apart(other.figures.tpot, other.tpot) for name, other in others.items()}
    ours = added(run, mock)
    yield Row("H3", "added to TTFT, 32 streams, mean", ours.mean_s, 0.0015, "s", peers=late)
    yield Row("H3", "added to TTFT, 32 streams, p99", ours.p99_s, 0.005, "s")
    yield Row("H4", "TPOT off the truth, 32 streams", ours.tpot_error, 0.002, "share", peers=off)
    run, mock = load(Script(first_token_s=0.2, token_s=0.02), closed(128 * size.rounds, 32, 64, 128))
    many, flags = added(run, mock), [gate.name for gate in failed(run.gates)]
    said = f"flags itself: {', '.join(flags)}" if flags else ""
    yield Row("H3b", "added to TTFT, 128 streams, mean", many.mean_s, 0.003, "s", note=said)
    yield Row("H3b", "added to TTFT, 128 streams, p99", many.p99_s, 0.015, "s", note=said)
    run, _ = load(FAR, closed(4 * size.rounds * 2, 32, 64, 4))
    flags = [gate.name for gate in failed(run.gates)]
    yield Row("far", "gates that fail 50 ms from the server", len(flags), 0, "", note=", ".join(flags))


def _agreement(size: Size, peers: Others, load: Load) -> Iterator[Row]:
    """How far the peers' means are from ours, at a load that all can carry; each against its own truth."""
    run, _ = load(PACED, closed(4 * size.rounds * 2, 32, 64, 4, sigma=0.0))
    others = peers.ask(PACED, 4 * size.rounds * 2, 4, 32, 64)
    ours = run.summary

    def compared(name: str, mine: float | None) -> dict[str, float | None]:
        return {peer: _apart(getattr(other.figures, name), mine) for peer, other in others.items()}

    for name, mine, limit in (
        ("tpot", ours.tpot.mean, 0.005),
        ("e2e", ours.e2e.mean, 0.015),
        ("ttft", ours.ttft.mean, 0.08),  # 8 ms of 100
    ):
        apart = compared(name, mine)
        yield Row("H5", f"{name.upper()}: peers off ours, 4 streams, most", _most(apart), limit, "share", peers=apart)
    bridge = compared("tpot_incl", ours.tpot_incl.mean)
    known: dict[str, float | None] = {name: value for name, value in bridge.items() if value is not None}
    yield Row("H6", "TPOT as GuideLLM defines it, off ours", _most(known), 0.005, "share", peers=known)


def _defects(cpu: int | None) -> Iterator[Row]:
    found = defects.find_all(cpu)
    missed = [each.defect for each in found if each.outcome == "missed"]
    unknown = [each.defect for each in found if each.outcome == "not measured"]
    note = f"missed: {', '.join(missed)}" if missed else f"not measured: {', '.join(unknown)}" if unknown else ""
    count = sum(each.outcome in ("detected", "neutralised") for each in found)
    yield Row("H7", "seeded defects detected or harmless, of 11", count, len(found), "", False, note=note)


def _verbs(size: Size, cpu: int | None) -> Iterator[Row]:
    limits = knee.search(size.knee, size.searches, cpu)
    ended = {each.why for each in limits if each.why}
    note = f"{len(limits)} searches; the knee is {knee.KNEE:.1f} requests/s"
    note += f"; ended early: {', '.join(sorted(ended))}" if ended else ""
    yield Row("knee", "SLO search: max rate off the known knee", knee.off(limits), 0.05, "share", note=note)
    said = gated.statuses(cpu)
    wrong = [f"{name}: {found}, not {right}" for name, (found, right) in said.items() if found != right]
    right = len(said) - len(wrong)
    yield Row("U2", "statuses of bench gate that are right, of 4", right, 4, "", False, note=", ".join(wrong))


def _statistics(size: Size) -> Iterator[Row]:
    note = f"{size.alarms:,} simulated comparisons of 4 pairs; nominal 5 %"
    yield Row("H8", "A/A false alarms", statistics.alarms(size.alarms), 0.065, "share", note=note)
    note = f"{size.power} simulated comparisons of 6 pairs of 1,000 requests at 70 % load"
    yield Row("H8", "finds a 3 % change of TPOT", statistics.power(size.power), 0.95, "share", False, note=note)
    covers, note = statistics.coverage(size.coverage), f"{size.coverage} intervals of 10 runs; at most 98 %"
    what = "p95-TTFT interval holds the truth, 90 % load"
    yield Row("H8", what, covers, 0.90, "share", False, note=note, below=0.98)
    half = statistics.cost_half_width()
    yield Row("H9", "half the width of a cost ratio's interval", half, 0.02, "share", note="6 pairs, simulated")


def _weight() -> Iterator[Row]:
    """What the extra brings, and how long the verb takes to start."""
    yield Row("U1", "CPU time to start `bench run`", min(weight.start_s() for _ in range(3)), 1.5, "s")
    yield Row("U1", "the extra, as installed", weight.extra_bytes("bench") / 1e6, 30, "MB")


def _rival(peer: Peer, script: Script, load: Asked, cpu: int | None) -> Rival:
    with TemporaryDirectory() as folder, serving(script, cpu) as mock:
        figures = ask(peer, mock.url, load, Path(folder))
    served = [each for each in mock.served if len(each.written) > 1]
    if not served:
        raise NoAnswer("asked for no streamed answer")
    return Rival(
        figures,
        fmean(each.written[0][0] - each.received_at for each in served),
        fmean(found for each in served if (found := tpot(each)) is not None),
    )


def _less(said: float | None, truth: float) -> float | None:
    return None if said is None else said - truth


def _apart(said: float | None, other: float | None) -> float | None:
    return None if said is None or not other else abs(said / other - 1)


def _most(apart: dict[str, float | None]) -> float | None:
    return max((value for value in apart.values() if value is not None), default=None)
