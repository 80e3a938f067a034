"""What happened when: a run cut into equal bins, at most `BINS` of them, from its first request sent to its last ended.

Rates are per second; what was under way is the mean over a bin. All times are seconds after the start of the run.
"""

from collections.abc import Iterable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from twofour.bench.load import metrics
from twofour.bench.load.run import Run

BINS = 60
_WIDTHS = (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)

Points = list[tuple[float, float]]  # seconds after the start, and the value from there to the next


def edges(run: Run) -> list[float]:
    """Of the bins; nothing where no request has ended."""
    whole = metrics.whole_window(run.records)
    if whole is None or whole[1] <= whole[0]:
        return []
    start, end = whole[0] - run.started_at, whole[1] - run.started_at
    width = next((width for width in _WIDTHS if (end - start) / width <= BINS), (end - start) / BINS)
    first, last = int(start // width), int(-(-end // width))
    return [number * width for number in range(first, last + 1)]


def sent_per_s(run: Run) -> Points:
    return _rate(run, [(record.sent_at, 1.0) for record in run.records if record.sent_at is not None])


def due_per_s(run: Run) -> Points:
    """When requests should have been sent: of an open loop, the load that was offered."""
    return _rate(run, [(record.scheduled_at, 1.0) for record in run.records])


def ended_per_s(run: Run) -> Points:
    """Of the requests that ended well."""
    return _rate(run, [(r.done_at, 1.0) for r in run.records if r.error is None and r.done_at is not None])


def tokens_per_s(run: Run) -> Points:
    """Output tokens of the requests that ended well; nothing where the server did not count them."""
    cuts = edges(run)
    if run.summary.token_counts == "none" or not cuts:
        return []
    sums = np.zeros(len(cuts) - 1)
    for record in (record for record in run.records if record.error is None):
        at, weights = record.chunks.at - run.started_at, record.chunks.tokens * metrics.scale(record)
        sums += np.histogram(at, cuts, weights=weights)[0]
    return _per_s(cuts, sums)


def under_way(run: Run) -> Points:
    """Requests in flight, by the client."""
    steps = metrics.under_way(run.records)
    if not (cuts := edges(run)):
        return []
    at = np.array([moment for moment, _ in steps]) - run.started_at
    levels = np.array([level for _, level in steps], dtype=float)
    so_far = np.concatenate([[0.0], np.cumsum(np.diff(at) * levels[:-1])])
    inside = np.interp(cuts, at, so_far)  # 0 before the first, all after the last, where nothing is under way
    return list(zip(cuts, (np.diff(inside) / np.diff(cuts)).tolist(), strict=False))


def binned(run: Run, samples: Sequence[tuple[float, float]]) -> Points:
    """The mean of what was sampled in each bin; a bin without a sample is left out."""
    cuts = edges(run)
    found: dict[int, list[float]] = {}
    for at, value in samples:
        if cuts and cuts[0] <= at < cuts[-1]:
            found.setdefault(int(np.searchsorted(cuts, at, side="right")) - 1, []).append(value)
    return [(cuts[number], sum(values) / len(values)) for number, values in sorted(found.items())]


def _rate(run: Run, events: Iterable[tuple[float, float]]) -> Points:
    """Events with their weights, per second."""
    cuts, pairs = edges(run), list(events)
    if not cuts:
        return []
    at, weights = [at - run.started_at for at, _ in pairs], [weight for _, weight in pairs]
    return _per_s(cuts, np.histogram(at, cuts, weights=weights)[0])


def _per_s(cuts: Sequence[float], sums: NDArray[np.float64]) -> Points:
    return [(start, float(total / (end - start))) for (start, end), total in zip(pairwise(cuts), sums, strict=True)]


def first_token_s(run: Run) -> Points:
    """The mean time to the first token of the requests that were sent in each bin and ended well."""
    good = [record for record in run.records if record.error is None]
    times = [(metrics.sent(r) - run.started_at, metrics.first_token(r) - metrics.sent(r)) for r in good]
    return binned(run, times)
