"""Is the run valid? Each gate compares one number with its limit and says what to do where it fails.

A gate whose number could not be measured (no usage from the server, no pressure counters in the kernel) is
neither passed nor failed.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean, median
from time import perf_counter

import numpy as np

from twofour.bench.metrics import first_token, kind, last_token, sent, steady_window
from twofour.bench.records import Record, Request

PRESSURE = Path("/proc/pressure/cpu")


@dataclass(frozen=True)
class Gate:
    """`passed` is None where `value` could not be measured."""

    name: str
    value: float | None
    limit: float
    unit: str  # `s` or `share`
    remedy: str

    @property
    def passed(self) -> bool | None:
        return None if self.value is None else self.value <= self.limit


class Pressure:
    """The share of time, since it was made, in which something on this machine waited for a CPU."""

    def __init__(self, source: Path = PRESSURE) -> None:
        self._source = source
        self._started_at = perf_counter()
        self._stalled_s = stalled_s(source)

    def share(self) -> float | None:
        now_s = stalled_s(self._source)
        if now_s is None or self._stalled_s is None:
            return None
        return (now_s - self._stalled_s) / (perf_counter() - self._started_at)


def stalled_s(source: Path = PRESSURE) -> float | None:
    """Seconds since boot in which some task waited for a CPU; None where the kernel does not count them."""
    try:
        some = source.read_text().splitlines()[0]
        return int(some.rpartition("total=")[2]) / 1e6
    except (OSError, IndexError, ValueError):
        return None


def check(
    requests: Sequence[Request],
    records: Sequence[Record],
    lags: Sequence[float],
    pressure: float | None,
    concurrency: int | None,
    prefix_hits: float | None = None,
) -> list[Gate]:
    """The gates of one run. concurrency: None, an open loop. prefix_hits: share by the server's own counters.

    `lags` as `Session.send` fills it, `pressure` from `Pressure.share`.
    """
    lag_s = lag_limit_s(records)
    pace = _SHORTFALL if concurrency is None else _UNSTEADY
    paced = shortfall(records) if concurrency is None else unsteadiness(records, concurrency)
    return [
        Gate("errors", _errors(records), 0.01, "share", "look at the errors, then lower the load"),
        Gate("send_lag_p99", _send_lag(records), lag_s, "s", "the client is late; give it a core of its own"),
        Gate("loop_lag_p99", _p99(lags), lag_s, "s", "the client is late; give it a core of its own"),
        Gate("cpu_pressure", pressure, 0.10, "share", "something waits for a CPU; stop it, or pin threads"),
        replace(pace, value=paced),
        Gate("prompt_length", _wrong_prompts(requests, records), 0.10, "share", _PROMPT_REMEDY),
        Gate("output_length", _wrong_lengths(requests, records), 0.005, "share", _LENGTH_REMEDY),
        Gate(
            "prefix_cache",
            max((share for share in (_cached(records), prefix_hits) if share is not None), default=None),
            0.01,
            "share",
            "turn the server's prefix cache off, restart it, or let the run choose its --nonce",
        ),
    ]


def failed(gates: Sequence[Gate]) -> list[Gate]:
    return [gate for gate in gates if gate.passed is False]


def quantity(value: float | None, unit: str) -> str:
    """A gate's number as a person reads it."""
    if value is None:
        return "not measured"
    return f"{value * 1000:.1f} ms" if unit == "s" else f"{value:.1%}"


_LENGTH_REMEDY = "outputs are not as long as asked for; the server must honour ignore_eos and min_tokens"
_PROMPT_REMEDY = "in the server's tokens prompts are not as long as asked for; its tokenizer splits plain English words"
_SHORTFALL = Gate("offered_rate", None, 0.10, "share", "the server answers fewer requests than come; lower --rate")
_UNSTEADY = Gate("steady", None, 0.20, "share", "the server slowed down or sped up; let it settle, give --requests")
_OWN_TOKENS = 2  # of a prompt, such as one that begins a text
_FEWEST_TO_TELL = 16  # requests, from which on a trend is more than chance


def lag_limit_s(records: Sequence[Record]) -> float:
    """A twentieth of the median time to the first token, which lateness would be part of; 1 ms is what a timer can."""
    times = [first_token(record) - sent(record) for record in records if record.error is None]
    return max(0.001, 0.05 * median(times)) if times else 0.001


def shortfall(records: Sequence[Record]) -> float | None:
    """The share of the offered requests that an open loop did not get answered while it went on.

    A server that answers a share 1 - s of what comes has each request wait longer than the one before, by s / (1 - s)
    of the time between them. So s is read off the waits of the first and the last quarter.
    """
    good = [record for record in records if record.error is None]
    waits = sorted((record.scheduled_at, last_token(record) - record.scheduled_at) for record in good)
    if len(waits) < _FEWEST_TO_TELL:
        return None
    (early, short), (late, long) = (
        [median(column) for column in zip(*quarter, strict=True)]
        for quarter in (waits[: len(waits) // 4], waits[-(len(waits) // 4) :])
    )
    growth = (long - short) / (late - early) if late > early else 0.0
    return growth / (1 + growth) if growth > 0 else 0.0


def unsteadiness(records: Sequence[Record], concurrency: int) -> float | None:
    """How far the two halves of a closed loop's window lie apart in tokens per second, of their mean."""
    window = steady_window(records)
    good = [record for record in records if record.error is None]
    if window is None or len(good) < max(_FEWEST_TO_TELL, 4 * concurrency):
        return None
    chunks = [chunk for record in good for chunk in record.chunks if window[0] < chunk.at <= window[1]]
    first = sum(chunk.tokens for chunk in chunks if chunk.at <= fmean(window))
    total = sum(chunk.tokens for chunk in chunks)
    return abs(total - 2 * first) / (total / 2) if total else None


def _errors(records: Sequence[Record]) -> float | None:
    return sum(bool(kind(record)) for record in records) / len(records) if records else None


def send_lag(record: Record) -> float | None:
    """How late the client was, the time in which the server took the connection left out.

    None where the request was never sent, or sent twice: the time between belongs to the server that closed.
    """
    if record.sent_at is None or record.reconnected:
        return None
    waited = record.sent_at - record.scheduled_at
    if record.connected_at is None or record.connecting_at is None:
        return waited
    return waited - (record.connected_at - record.connecting_at)


def _send_lag(records: Sequence[Record]) -> float | None:
    return _p99([lag for lag in map(send_lag, records) if lag is not None])


def _p99(values: Sequence[float]) -> float | None:
    return float(np.percentile(values, 99)) if values else None


def _wrong_lengths(requests: Sequence[Request], records: Sequence[Record]) -> float | None:
    asked = {request.index: request.output_tokens for request in requests}
    known = [record for record in records if record.error is None and record.output_tokens is not None]
    wrong = sum(record.output_tokens != asked[record.index] for record in known)
    return wrong / len(known) if known else None


def _wrong_prompts(requests: Sequence[Request], records: Sequence[Record]) -> float | None:
    """How far the server's count of the prompts' tokens lies from the plan; up to two a prompt may be its own."""
    planned = {request.index: request.prompt_tokens for request in requests}
    known = [(planned[record.index], record.prompt_tokens) for record in records if record.prompt_tokens is not None]
    asked, counted = (sum(column) for column in zip(*known, strict=True)) if known else (0, 0)
    return max(0, abs(counted - asked) - _OWN_TOKENS * len(known)) / asked if asked else None


def _cached(records: Sequence[Record]) -> float | None:
    """Share of the prompt tokens that the server found in its prefix cache."""
    known = [record for record in records if record.cached_tokens is not None and record.prompt_tokens]
    prompts = sum(record.prompt_tokens or 0 for record in known)
    return sum(record.cached_tokens or 0 for record in known) / prompts if prompts else None
