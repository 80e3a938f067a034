"""The times between the chunks of an answer: of one request, of all pooled, and by token."""

from collections.abc import Iterable, Sequence
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from twofour.bench.load.records import Record
from twofour.bench.stats import Distribution, distribution, independent

Times = NDArray[np.float64]


def of(record: Record) -> Times:
    """The time before every chunk but the first."""
    return np.diff(record.chunks.at)


def coalesced(record: Record) -> int:
    """How many reads brought more than one chunk."""
    together = of(record) == 0
    return int(np.count_nonzero(together[1:] > together[:-1])) + int(together[:1].any())


def pooled(records: Sequence[Record]) -> tuple[Times, list[Times]]:
    """Every gap between two chunks, and of each request the part of this array that is its own."""
    return _joined([max(len(record.chunks) - 1, 0) for record in records], map(of, records))


def by_gap(good: Sequence[Record]) -> Distribution:
    pool, groups = pooled(good)
    real = independent(groups)
    return distribution(pool, independent=real)


def by_token(good: Sequence[Record], by_gap: Distribution) -> Distribution:
    """by_gap: the same where each chunk holds one token."""
    if all((record.chunks.tokens[1:] == 1).all() for record in good):
        return by_gap
    later = [record.chunks.tokens[1:] for record in good]
    each = (
        np.repeat(of(record), tokens) / np.repeat(tokens, tokens) for record, tokens in zip(good, later, strict=True)
    )
    pool, _ = _joined([int(tokens.sum()) for tokens in later], each)
    return distribution(pool, independent=by_gap.independent)


def _joined(sizes: Sequence[int], parts: Iterable[Times]) -> tuple[Times, list[Times]]:
    """The parts as one array, of which there is no second copy at any time: a long run has millions of gaps."""
    ends = [0, *accumulate(sizes)]
    pool = np.empty(ends[-1])
    groups = [pool[start:end] for start, end in pairwise(ends)]
    for group, part in zip(groups, parts, strict=True):
        group[:] = part
    return pool, groups
