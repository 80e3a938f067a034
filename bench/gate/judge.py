"""New against base, place by place: is a figure worse by more than is allowed, beyond chance?

A figure is the geometric mean over the runs of a place. Where both sides have runs of the same schedules, each once,
these pair up, and what a schedule does to a figure drops out. The interval of a ratio is at 95 % for all figures
together: with m of them each has 1 - 0.05 / m. A figure passes where its whole interval is allowed, is a regression
where none of it is, and else is inconclusive, as are figures that a run does not have, and single runs.
"""

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import exp, log
from statistics import fmean
from typing import Any, Literal

from twofour.bench.gate.evidence import Evidence, Sample
from twofour.bench.stats import Ratio, matched_ratio, unpaired_ratio
from twofour.prune.errors import InputError

KIND = "twofour.bench.gate"
SCHEMA_VERSION = 1
ALARMS = 0.05  # how often so many figures may alarm, or pass, by chance

Word = Literal["pass", "regression", "inconclusive", "invalid"]
STATUS: dict[Word, int] = {"pass": 0, "regression": 1, "inconclusive": 2, "invalid": 3}

_TIMES = ("ttft", "ttft_sched", "first_byte", "itl_gap", "itl_tok", "tpot", "tpot_vllm", "tpot_incl", "e2e")
_RATES = ("output_tokens_per_s", "total_tokens_per_s", "requests_per_s", "goodput_per_s", "max_rate")
_STATISTICS = ("mean", "p50", "p90", "p95", "p99")
_LIMIT = re.compile(r"(\w+)=(\d+(?:\.\d+)?)%")


@dataclass(frozen=True)
class Allowed:
    """share: by how much a figure may be worse. statistic None: the quantity is a rate, of which more is better."""

    name: str
    quantity: str
    statistic: str | None
    share: float

    @property
    def most(self) -> float | None:
        """What new / base may be at most; None: it has a least."""
        return 1 + self.share if self.statistic else None

    @property
    def least(self) -> float | None:
        return None if self.statistic else 1 - self.share

    def of(self, sample: Sample) -> float | None:
        found = sample.figures.get(self.quantity)
        value = (found or {}).get(self.statistic) if self.statistic else found
        return float(value) if value else None


@dataclass(frozen=True)
class Finding:
    place: str
    allowed: Allowed
    base: float | None
    new: float | None
    ratio: Ratio | None
    paired: bool
    verdict: Word


@dataclass(frozen=True)
class Judgement:
    base: str
    new: str
    findings: Sequence[Finding]
    invalid: Sequence[str]  # why nothing can be said

    @property
    def verdict(self) -> Word:
        if self.invalid:
            return "invalid"
        words = {finding.verdict for finding in self.findings}
        return next((word for word in ("regression", "inconclusive") if word in words), "pass")

    def as_dict(self) -> dict[str, Any]:
        return {"kind": KIND, "schema_version": SCHEMA_VERSION, "verdict": self.verdict} | asdict(self)


def read_allowed(text: str) -> Allowed:
    """Read `tpot=3%` or `ttft_p95=10%`. Raises InputError for anything else."""
    found = _LIMIT.fullmatch(text)
    quantity, statistic = _figure(found[1]) if found else ("", None)
    if not found or not quantity or float(found[2]) >= 100:
        raise InputError(
            f"--max-regress {text} allows nothing that is known; write tpot=3%, with one of {', '.join(_TIMES)}, and "
            f"_p95 or another of {', '.join(_STATISTICS)} if need be, or one of {', '.join(_RATES)}"
        )
    return Allowed(found[1], quantity, statistic, float(found[2]) / 100)


def _figure(name: str) -> tuple[str, str | None]:
    """Without a statistic, a time per token is its mean, every other time its median."""
    if name in _RATES:
        return name, None
    if name in _TIMES:
        return name, "mean" if name.startswith("tpot") else "p50"
    quantity, _, statistic = name.rpartition("_")
    return (quantity, statistic) if quantity in _TIMES and statistic in _STATISTICS else ("", None)


def judge(base: Evidence, new: Evidence, allowed: Sequence[Allowed]) -> Judgement:
    invalid = _incomparable(base, new)
    if invalid:
        return Judgement(base.source, new.source, [], invalid)
    share = 1 - ALARMS / (len(base.places) * len(allowed))
    findings = [
        _finding(place, each, samples, new.places[place], share)
        for place, samples in base.places.items()
        for each in allowed
    ]
    return Judgement(base.source, new.source, findings, [])


def _incomparable(base: Evidence, new: Evidence) -> list[str]:
    said = [f"{name} is not valid by itself; measure it again" for name in (*base.spoiled, *new.spoiled)]
    if differing := sorted(key for key in {*base.load, *new.load} if base.load.get(key) != new.load.get(key)):
        said.append(f"the loads differ in {', '.join(differing)}; measure both under the same")
    if base.machine and new.machine and base.machine != new.machine:
        said.append("the machines differ; measure both on one")
    if missing := sorted(base.places.keys() - new.places.keys()):
        said.append(f"{new.source} has nothing of {', '.join(missing)}; measure it there, too")
    return said


def _finding(place: str, allowed: Allowed, base: Sequence[Sample], new: Sequence[Sample], share: float) -> Finding:
    old, fresh, paired = _matched(base, new)
    values = [[allowed.of(sample) for sample in samples] for samples in (old, fresh)]
    known = [[value for value in each if value is not None] for each in values]
    if not all(known) or [len(each) for each in known] != [len(old), len(fresh)]:
        return Finding(place, allowed, None, None, None, paired, "inconclusive")
    ratio = (matched_ratio if paired else unpaired_ratio)(known[0], known[1], share)
    was, is_ = (exp(fmean(map(log, each))) for each in known)
    return Finding(place, allowed, was, is_, ratio, paired, _verdict(allowed, ratio))


def _matched(base: Sequence[Sample], new: Sequence[Sample]) -> tuple[Sequence[Sample], Sequence[Sample], bool]:
    """Both in the order of their schedules, where each side has each schedule once."""
    seeds = [{sample.seed: sample for sample in samples} for samples in (base, new)]
    whole = len(seeds[0]) == len(base) and len(seeds[1]) == len(new)
    if None in seeds[0] or seeds[0].keys() != seeds[1].keys() or not whole:
        return base, new, False
    return list(seeds[0].values()), [seeds[1][seed] for seed in seeds[0]], True


def _verdict(allowed: Allowed, ratio: Ratio) -> Word:
    if ratio.low is None or ratio.high is None:
        return "inconclusive"
    if allowed.most is not None:
        return _word(ratio.high <= allowed.most, ratio.low > allowed.most)
    least = allowed.least or 0.0
    return _word(ratio.low >= least, ratio.high < least)


def _word(whole: bool, none: bool) -> Word:
    return "pass" if whole else "regression" if none else "inconclusive"
