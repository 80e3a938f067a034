"""The service that is promised, whether a run kept it, and how many of its requests were good.

An Slo is written `ttft_p95=500ms,tpot_p95=50ms,e2e=2s`: terms of which all must hold. A term with a percentile bounds
that percentile over the requests of a run; one without bounds every request. Quantities:

- ttft: from the scheduled time to the first token, and e2e to the last: what a user waits, though the client be late
- tpot: as in `metrics`; itl: every gap between two chunks

A request is *good* where it ended well and keeps every limit by itself: its ttft, tpot and e2e, and of its own gaps as
many as the term says. *Goodput* is good requests a second. A failed request is infinitely slow: it misses every term.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import ceil, inf, isfinite
from statistics import fmean
from typing import Any

import numpy as np

from twofour.bench.load import gaps
from twofour.bench.load.metrics import first_token, in_window, last_token, steady_window, token_counts, tpot
from twofour.bench.load.records import Record
from twofour.bench.stats import FEWEST, independent, nearest_rank, wilson
from twofour.prune.errors import InputError

_TERM = re.compile(r"(\w+?)(?:_p(\d+))?=(\d+(?:\.\d+)?)(ms|s)")
_SECONDS = {"ms": 1e-3, "s": 1.0}

Values = Sequence[float] | gaps.Times


def _tpot(record: Record) -> Values:
    found = tpot(record)
    return [] if found is None else [found]


# What a request that ended well gives of each quantity: one value, none, or many.
_VALUES: Mapping[str, Callable[[Record], Values]] = {
    "ttft": lambda record: [first_token(record) - record.scheduled_at],
    "tpot": _tpot,
    "itl": gaps.of,
    "e2e": lambda record: [last_token(record) - record.scheduled_at],
}


@dataclass(frozen=True)
class Term:
    quantity: str
    percent: int | None  # None: every request
    limit_s: float

    @property
    def name(self) -> str:
        return self.quantity if self.percent is None else f"{self.quantity}_p{self.percent}"

    @property
    def fewest(self) -> int:
        """The fewest requests by which it can be judged."""
        return 1 if self.percent is None else FEWEST[self.percent]

    def worst(self, values: Values, lost: int = 0) -> float:
        """lost: so many more are infinite. An array is sorted where it is: it may have no room twice."""
        ranked = np.asarray(values, np.float64)
        ranked.sort()
        return nearest_rank(ranked, self.percent or 100, lost)

    def __str__(self) -> str:
        return f"{self.name}={self.limit_s * 1000:g}ms"


@dataclass(frozen=True)
class Slo:
    terms: tuple[Term, ...]

    @property
    def fewest(self) -> int:
        return max(term.fewest for term in self.terms)

    def __str__(self) -> str:
        return ",".join(map(str, self.terms))


@dataclass(frozen=True)
class Kept:
    """One term in one run. found_s: infinite where too many requests failed, None where it was not measured."""

    term: str
    limit_s: float
    found_s: float | None

    @property
    def kept(self) -> bool | None:
        return None if self.found_s is None else self.found_s <= self.limit_s


@dataclass(frozen=True)
class Attainment:
    """What one run kept of an Slo. `requests` are those sent within the window, `good` of them; None: not known."""

    slo: str
    terms: tuple[Kept, ...]
    requests: int
    good: int | None
    good_share: tuple[float, float, float] | None  # with its 95 % interval, which takes requests for independent
    goodput_per_s: float | None  # good requests that ended within the window, by its length

    @property
    def attained(self) -> bool | None:
        verdicts = [term.kept for term in self.terms]
        return False if False in verdicts else None if None in verdicts else True

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: unknown and infinite are None."""
        terms = [asdict(term) | {"found_s": _finite(term.found_s), "kept": term.kept} for term in self.terms]
        return asdict(self) | {"terms": terms, "attained": self.attained}


def parse(text: str) -> Slo:
    """Read `ttft_p95=500ms,e2e=2s`. Raises InputError for anything else."""
    terms = tuple(map(_term, text.replace(" ", "").split(",")))
    if len({term.name for term in terms}) < len(terms):
        raise InputError(f"the SLO {text!r} bounds something twice; name each of its terms once")
    return Slo(terms)


def _term(text: str) -> Term:
    found = _TERM.fullmatch(text)
    if not found:
        raise InputError(f"{text!r} is no term of an SLO; write ttft_p95=500ms or e2e=2s, with commas between")
    quantity, percent, number, unit = found.groups()
    limit_s = float(number) * _SECONDS[unit]
    if quantity not in _VALUES or (percent and int(percent) not in FEWEST) or not limit_s:
        percentiles = ", ".join(f"p{p}" for p in FEWEST if isinstance(p, int))
        raise InputError(
            f"{text!r} bounds nothing that is measured; bound one of {', '.join(_VALUES)}, "
            f"by none or one of {percentiles}, to more than 0"
        )
    return Term(quantity, int(percent) if percent else None, limit_s)


def attain(slo: Slo, records: Sequence[Record]) -> Attainment:
    """Judge a run by its records, within its steady window."""
    window = steady_window(records)
    inside = in_window(records, window)
    terms = tuple(_kept(term, inside) for term in slo.terms)
    if not _known(slo, records):
        return Attainment(str(slo), terms, len(inside), None, None, None)
    good = sum(is_good(slo, record) for record in inside)
    share = (good / len(inside), *wilson(good, len(inside))) if inside else None
    return Attainment(str(slo), terms, len(inside), good, share, _goodput(slo, records, window))


def is_good(slo: Slo, record: Record) -> bool:
    return record.error is None and all(
        term.worst(values) <= term.limit_s for term in slo.terms if len(values := _VALUES[term.quantity](record))
    )


def _known(slo: Slo, records: Sequence[Record]) -> bool:
    """Times per token need the server's count of tokens."""
    counted = token_counts([record for record in records if record.error is None]) != "none"
    return counted or all(term.quantity != "tpot" for term in slo.terms)


def _kept(term: Term, inside: Sequence[Record]) -> Kept:
    values, groups = _pooled(term.quantity, [record for record in inside if record.error is None])
    failed = len(inside) - len(groups)
    # A failed request has as many values as one that ended well, and all are infinite.
    lost = failed * (ceil(fmean(map(len, groups))) or 1 if groups else 1)
    enough = (independent(groups) if len(values) else 0) + failed >= term.fewest
    known = enough and bool(len(values) or not groups)
    return Kept(term.name, term.limit_s, term.worst(values, lost) if known else None)


def _pooled(quantity: str, good: Sequence[Record]) -> tuple[Values, Sequence[Values]]:
    """All values, and those of each request."""
    if quantity == "itl":
        return gaps.pooled(good)
    groups = [_VALUES[quantity](record) for record in good]
    return [value for group in groups for value in group], groups


def _goodput(slo: Slo, records: Sequence[Record], window: tuple[float, float] | None) -> float | None:
    if window is None or window[1] <= window[0]:
        return None
    ended = [record for record in records if window[0] < (record.done_at or inf) <= window[1]]
    return sum(is_good(slo, record) for record in ended) / (window[1] - window[0])


def _finite(value: float | None) -> float | None:
    return value if value is not None and isfinite(value) else None
