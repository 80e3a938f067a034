"""Did the server keep up, and was the run steady? Do answers take longer the later their requests come?

Answers differ in length, so what their tokens explain is left out. Requests of one run wait in the same queue, so
neighbours are alike, and chance soon looks like a trend: what is returned is the end of the trend's 95 % interval that
is nearest to 0. With a stable queue, at eight tenths of what the server can do, about one run of 64 requests in twenty
shows a drift.
"""

from collections.abc import Sequence

from twofour.bench.load.metrics import last_token
from twofour.bench.load.records import Record
from twofour.bench.stats import trend

FEWEST = 16  # requests; of fewer no trend can be told from chance
_ERRORS = 2.0  # standard errors, about 95 %


def rate_shortfall(records: Sequence[Record]) -> float | None:
    """The share of the requests of an open loop that the server left behind.

    Where it leaves a share s behind, a request that comes a second later waits s / (1 - s) seconds longer.
    """
    found = _trend(records)
    if found is None:
        return None
    slope, error = found
    longer = max(0.0, slope - _ERRORS * error)
    return longer / (1 + longer)


def latency_drift(records: Sequence[Record]) -> float | None:
    """How much the time to the end of an answer changed from the first to the last request, as a share of its mean."""
    found = _trend(records)
    if found is None:
        return None
    slope, error = found
    good = _good(records)
    asked_s = good[-1].scheduled_at - good[0].scheduled_at
    return max(0.0, abs(slope) - _ERRORS * error) * asked_s / (sum(map(_took_s, good)) / len(good))


def _trend(records: Sequence[Record]) -> tuple[float, float] | None:
    """How many seconds longer an answer takes for each second that its request comes later; its standard error."""
    good = _good(records)
    if len(good) < FEWEST:
        return None
    answers = [float(record.chunks.total) for record in good]
    prompts = [float(record.prompt_tokens or 0) for record in good]
    return trend([record.scheduled_at for record in good], [_took_s(record) for record in good], [answers, prompts])


def _good(records: Sequence[Record]) -> list[Record]:
    return sorted((record for record in records if record.error is None), key=lambda record: record.scheduled_at)


def _took_s(record: Record) -> float:
    return last_token(record) - record.scheduled_at
