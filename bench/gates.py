"""Is the run valid? Each gate compares one number with its limit and says what to do where it fails.

A gate whose number could not be measured (no usage from the server, no pressure counters in the kernel) is
neither passed nor failed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from twofour.bench.metrics import kind
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
) -> list[Gate]:
    """The gates of one run: `lags` as `client.drive` fills it, `pressure` from `Pressure.share`."""
    return [
        Gate("errors", _errors(records), 0.01, "share", "look at the errors, then lower the load"),
        Gate("send_lag_p99", _send_lag(records), 0.010, "s", "the client is late; give it a core of its own"),
        Gate("loop_lag_p99", _p99(lags), 0.010, "s", "the client is late; give it a core of its own"),
        Gate("cpu_pressure", pressure, 0.10, "share", "something waits for a CPU; stop it, or pin threads"),
        Gate("output_length", _wrong_lengths(requests, records), 0.005, "share", _LENGTH_REMEDY),
        Gate(
            "prefix_cache",
            _cached(records),
            0.01,
            "share",
            "turn the server's prefix cache off, or restart it",
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


def _cached(records: Sequence[Record]) -> float | None:
    """Share of the prompt tokens that the server found in its prefix cache."""
    known = [record for record in records if record.cached_tokens is not None and record.prompt_tokens]
    prompts = sum(record.prompt_tokens or 0 for record in known)
    return sum(record.cached_tokens or 0 for record in known) / prompts if prompts else None
