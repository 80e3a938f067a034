"""Statistics of runs: percentiles that know when there are too few values, intervals of shares and ratios.

Requests of one run are not independent: they wait in the same queue. So intervals are taken over runs
(pairs of runs, one of each arm on the same schedule), never over the requests of one.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, combinations
from statistics import fmean, stdev
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from twofour.prune.errors import InputError

K = TypeVar("K")

# The fewest values for which a 95 % interval of the percentile exists that assumes no distribution.
FEWEST = {50: 6, 90: 29, 95: 59, 99: 299, 99.9: 2995}


@dataclass(frozen=True)
class Distribution:
    """One quantity over requests, gaps or tokens. None: nothing was measured, or too few to say.

    `independent`: how many independent values the `n` amount to; gaps of one request are alike. Percentiles interpolate
    linearly (type 7). `adjusted_*` count a failed request as infinitely slow and
    take the nearest rank; infinity means that too many failed.
    """

    n: int
    failed: int = 0
    independent: int = 0
    mean: float | None = None
    sd: float | None = None
    p50: float | None = None
    p90: float | None = None
    p95: float | None = None
    p99: float | None = None
    p999: float | None = None
    min: float | None = None
    max: float | None = None
    adjusted_p50: float | None = None
    adjusted_p90: float | None = None
    adjusted_p95: float | None = None
    adjusted_p99: float | None = None
    adjusted_p999: float | None = None


@dataclass(frozen=True)
class Ratio:
    """A geometric mean of ratios over `n` pairs with its 95 % interval, None below two pairs."""

    point: float
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True)
class Estimate:
    """A figure of `n` runs with its 95 % interval, None below two runs."""

    point: float
    low: float | None
    high: float | None
    n: int


def distribution(
    values: Sequence[float] | NDArray[np.float64], failed: int = 0, independent: int | None = None
) -> Distribution:
    """independent: how many of the values are; None: all. An array is sorted where it is: it may have no room twice."""
    if not len(values):
        return Distribution(0, failed)
    independent = len(values) if independent is None else independent
    ranked = np.asarray(values, np.float64)
    mean = float(np.mean(ranked))
    sd = _sd(ranked, mean)
    ranked.sort()
    adjusted = {
        f"adjusted_{named(p)}": nearest_rank(ranked, p, failed) if independent + failed >= fewest else None
        for p, fewest in FEWEST.items()
    }
    ends = {"min": float(ranked[0]), "max": float(ranked[-1])}
    cuts = np.percentile(ranked, list(FEWEST), overwrite_input=True)  # no longer in order then
    plain = {
        named(p): float(cut) if independent >= fewest else None
        for (p, fewest), cut in zip(FEWEST.items(), cuts, strict=True)
    }
    return Distribution(len(values), failed, independent, mean, sd, **plain, **ends, **adjusted)


def _sd(values: NDArray[np.float64], mean: float) -> float:
    parts = (values[start : start + _PART] - mean for start in range(0, len(values), _PART))
    return math.sqrt(sum(float(part @ part) for part in parts) / len(values))


def named(percent: float) -> str:
    """The field of a Distribution: p50, and p999 for 99.9 %."""
    return f"p{percent:g}".replace(".", "")


def independent(groups: Sequence[Sequence[float] | NDArray[np.float64]]) -> int:
    """How many independent values these amount to, as values of one group are alike: Kish's effective size.

    One for each group, where all its values are the same, up to all values, where groups do not differ. How alike they
    are is estimated by an analysis of variance. With fewer groups than a median needs, each group counts as one.
    """
    filled = [np.asarray(group) for group in groups if len(group)]
    sizes = np.array([len(group) for group in filled])
    k, n = len(filled), int(sizes.sum())
    if k < FEWEST[50] or n == k:
        return k
    means = np.array([group.mean() for group in filled])
    whole = float(sizes @ means) / n
    between = float(sizes @ (means - whole) ** 2) / (k - 1)
    within = sum(float(((group - group.mean()) ** 2).sum()) for group in filled) / (n - k)
    typical, weighted = (n - float(sizes @ sizes) / n) / (k - 1), float(sizes @ sizes) / n
    total = between + (typical - 1) * within
    alike = min(max((between - within) / total, 0.0), 1.0) if total else 0.0
    return max(k, int(n / (1 + (weighted - 1) * alike)))


def nearest_rank(ranked: Sequence[float] | NDArray[np.float64], percent: float, lost: int = 0) -> float:
    """The percentile of ascending values that is one of them; in whole tenths of a percent.

    lost: how many more there are, all infinite.
    """
    rank = -(-round(percent * 10) * (len(ranked) + lost) // 1000) - 1
    return float(ranked[rank]) if rank < len(ranked) else math.inf


def wilson(found: int, of: int) -> tuple[float, float]:
    """The 95 % interval of a share of independent values, by Wilson's score."""
    share, squared = found / of, _Z975**2 / of
    centre, half = share + squared / 2, _Z975 * math.sqrt((share * (1 - share) + squared / 4) / of)
    low, high = (centre - half) / (1 + squared), (centre + half) / (1 + squared)
    return (low if found else 0.0), (high if found < of else 1.0)  # exactly, whatever rounding says


def trend(at: Sequence[float], values: Sequence[float], others: Sequence[Sequence[float]]) -> tuple[float, float]:
    """The slope of values over `at`, which ascends, and its standard error; by least squares.

    What the columns of `others` explain is left out. Neighbours may be alike (autoregressive errors).
    """
    centred = [np.asarray(column) - np.mean(column) for column in (at, *others)]
    design = np.column_stack([np.ones(len(at)), *centred])
    inverse = np.linalg.pinv(design)
    left = values - design @ (inverse @ values)
    square, freedom = float(left @ left), len(at) - int(np.linalg.matrix_rank(design))
    alike = min(max(float(left[1:] @ left[:-1]) / square, 0.0), _MOST_ALIKE) if square else 0.0
    variance = square / freedom * float(inverse[1] @ inverse[1]) * (1 + alike) / (1 - alike)
    return float(inverse[1] @ values), math.sqrt(variance)


def nonnegative(gram: "np.ndarray[Any, Any]", right: "np.ndarray[Any, Any]") -> list[float]:
    """The factors, none below 0, of the least squares with these normal equations: the best set of few terms."""
    width, best, least = len(right), [0.0] * len(right), 0.0
    scale = np.sqrt(np.where(np.diag(gram) > 0, np.diag(gram), 1.0))  # terms may be of any size
    square, goal = gram / np.outer(scale, scale), right / scale
    for chosen in map(list, chain.from_iterable(combinations(range(width), size) for size in range(1, width + 1))):
        found = np.linalg.lstsq(square[np.ix_(chosen, chosen)], goal[chosen], rcond=None)[0]
        missed = float(found @ square[np.ix_(chosen, chosen)] @ found - 2 * found @ goal[chosen])
        if (found >= 0).all() and missed < least:
            least, best = missed, [0.0] * width
            for term, factor in zip(chosen, found / scale[chosen], strict=True):
                best[term] = float(factor)
    return best


def paired_ratio(pairs: Sequence[tuple[float, float]], seed: int) -> Ratio:
    """Second over first: up to 19 pairs a t interval of the log-ratios, then a bootstrap over the pairs."""
    if not pairs or any(not (0 < value < math.inf) for pair in pairs for value in pair):
        raise InputError("a ratio needs at least one pair, of finite numbers above 0")
    logs = [math.log(second / first) for first, second in pairs]
    centre = fmean(logs)
    if len(logs) == 1:
        return Ratio(math.exp(centre), None, None, 1)
    low, high = _student(logs) if len(logs) <= len(_T975) + 1 else _bootstrap(logs, seed)
    return Ratio(math.exp(centre), math.exp(low), math.exp(high), len(logs))


def replicated(runs: Sequence[Sequence[float] | NDArray[np.float64]], percent: float) -> Estimate:
    """A percentile of times, itself above 0, of several runs with different seeds, by Student's t over the runs.

    The point is that of all runs together; how far those of the single runs are from it, by their logarithms, is what
    the interval follows from (sectioning). The mean of single runs would be biased: a queue is short in most runs and
    very long in some. Requests of one run say little about its spread: they wait in the same queue.
    """
    if not runs or not all(map(len, runs)):
        raise InputError("a percentile over runs needs runs, each of one time at least")
    whole, each = np.percentile(np.concatenate(runs), percent), [np.percentile(run, percent) for run in runs]
    if min(whole, *each) <= 0:
        raise InputError(f"the {percent:g}th percentile of a run is 0, which has no logarithm")
    centre = math.log(whole)
    if len(runs) == 1:
        return Estimate(math.exp(centre), None, None, 1)
    away = [math.log(found) - centre for found in each]
    error = math.sqrt(sum(each**2 for each in away) / (len(runs) - 1) / len(runs))
    half = student(0.95, len(runs) - 1) * error
    return Estimate(math.exp(centre), math.exp(centre - half), math.exp(centre + half), len(runs))


def unpaired_ratio(base: Sequence[float], other: Sequence[float], share: float = 0.95) -> Ratio:
    """Other over base, of runs that do not pair up: Welch's interval of the logarithms, its freedom rounded down."""
    logs = [[math.log(value) for value in values] for values in (base, other)]
    centre, n = fmean(logs[1]) - fmean(logs[0]), min(map(len, logs))
    if n < 2:
        return Ratio(math.exp(centre), None, None, n)
    errors = [stdev(each) ** 2 / len(each) for each in logs]
    parts = sum(error**2 / (len(each) - 1) for error, each in zip(errors, logs, strict=True))
    freedom = math.floor(sum(errors) ** 2 / parts) if parts else 2 * n - 2
    half = student(share, freedom) * math.sqrt(sum(errors))
    return Ratio(math.exp(centre), math.exp(centre - half), math.exp(centre + half), n)


def matched_ratio(base: Sequence[float], other: Sequence[float], share: float = 0.95) -> Ratio:
    """The same of runs that pair up in their order: Student's interval of the log-ratios."""
    logs = [math.log(second / first) for first, second in zip(base, other, strict=True)]
    centre, n = fmean(logs), len(logs)
    if n < 2:
        return Ratio(math.exp(centre), None, None, n)
    half = student(share, n - 1) * stdev(logs) / math.sqrt(n)
    return Ratio(math.exp(centre), math.exp(centre - half), math.exp(centre + half), n)


def student(share: float, freedom: int) -> float:
    """The t between which and -t so large a share of Student's t lies."""
    low, high = 0.0, 1.0
    while within_t(high, freedom) < share:
        low, high = high, 2 * high
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if within_t(middle, freedom) < share else (low, middle)
    return high


def chance(pairs: Sequence[tuple[float, float]]) -> float | None:
    """How likely chance alone gives log-ratios as far from 0, by Student's t; None below two pairs."""
    logs = [math.log(second / first) for first, second in pairs]
    if len(logs) < 2:
        return None
    error = stdev(logs) / math.sqrt(len(logs))
    if not error:
        return 1.0 if fmean(logs) == 0 else 0.0
    return 1 - within_t(abs(fmean(logs)) / error, len(logs) - 1)


def within_t(t: float, freedom: int) -> float:
    """The share of Student's t between -t and t: the finite sums for whole degrees of freedom."""
    angle = math.atan(t / math.sqrt(freedom))
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for power in range(2 + odd, freedom + 1, 2):
        total += term
        term *= (power - 1) / power * math.cos(angle) ** 2
    share = math.sin(angle) * total
    return (angle + share) * 2 / math.pi if odd else share


def holm(chances: Mapping[K, float]) -> dict[K, float]:
    """Corrected for how many were looked at (Holm): below 0.05, all together are wrong in one of 20 cases at most."""
    corrected, most = dict[K, float](), 0.0
    for rank, (name, found) in enumerate(sorted(chances.items(), key=lambda item: item[1])):
        most = max(most, min(1.0, (len(chances) - rank) * found))
        corrected[name] = most
    return corrected


# Student's t, 97.5 %, for 1 to 18 degrees of freedom: 2 to 19 pairs.
_T975 = (
    *(12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622),
    *(2.2281, 2.2010, 2.1788, 2.1604, 2.1448, 2.1314, 2.1199, 2.1098, 2.1009),
)
_PART = 2**20  # values that are worked on at a time, where there may be many
_Z975 = 1.959964  # of the normal distribution
_RESAMPLES = 4000
_MOST_ALIKE = 0.95


def _student(logs: Sequence[float]) -> tuple[float, float]:
    half = _T975[len(logs) - 2] * stdev(logs) / math.sqrt(len(logs))
    return fmean(logs) - half, fmean(logs) + half


def _bootstrap(logs: Sequence[float], seed: int) -> tuple[float, float]:
    draw = random.Random(f"{seed}/bootstrap")
    means = [fmean(draw.choices(logs, k=len(logs))) for _ in range(_RESAMPLES)]
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
