"""Is the run valid? Each gate compares one number with its limit and says what to do where it fails.

A gate whose number could not be measured (no usage from the server, no pressure counters in the kernel) is
neither passed nor failed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import NamedTuple

import numpy as np

from twofour.bench.load.metrics import error_kind, first_token, sent, steady
from twofour.bench.load.records import Record, Request
from twofour.bench.load.steadiness import latency_drift, rate_shortfall
from twofour.bench.load.workload import Schedule, shared_share

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


class Own(NamedTuple):
    """Tokens that the server adds to a prompt, and to each message before it. None: nobody knows."""

    template_tokens: int | None = 0
    message_tokens: float | None = 0.0


NOTHING_OWN = Own()


def check(
    schedule: Schedule,
    records: Sequence[Record],
    lags: Sequence[float],
    pressure: float | None,
    prefix_hits: float | None = None,
    own: Own = NOTHING_OWN,
) -> list[Gate]:
    """The gates of one run.

    `lags` as `Session.send` fills it, `pressure` from `Pressure.share`, `prefix_hits` from `prefix_hit_share`.
    """
    lag_s, requests, concurrency = lag_limit_s(records), schedule.requests, schedule.concurrency
    # A closed loop begins with one request alone, which does not count. In an open loop all count: where the server
    # falls behind, the steady window would begin late.
    alike = records if concurrency is None else steady(records)
    return [
        Gate("errors", _errors(records), 0.01, "share", "look at the errors, then lower the load"),
        Gate("send_lag_p99", _send_lag(records), lag_s, "s", "the client is late; give it a core of its own"),
        Gate("loop_lag_p99", _p99(lags), min(lag_s, _GAPS_S), "s", "the client is late; give it a core of its own"),
        Gate("cpu_pressure", pressure, 0.10, "share", "something waits for a CPU; stop it, or pin threads"),
        *([] if concurrency else [Gate("rate_shortfall", rate_shortfall(records), 0.05, "share", _SHORTFALL_REMEDY)]),
        *([] if schedule.changes else [Gate("latency_drift", latency_drift(alike), 0.20, "share", _DRIFT_REMEDY)]),
        Gate("prompt_length", _wrong_prompts(requests, records, own), 0.10, "share", _PROMPT_REMEDY),
        Gate("output_length", _wrong_lengths(requests, records), 0.005, "share", _LENGTH_REMEDY),
        Gate(
            "prefix_cache",
            _cached(records, prefix_hits, own.template_tokens),
            0.01 + _shared(requests, records),
            "share",
            _CACHE_REMEDY,
        ),
        *([Gate("held_back", _held(records), 0.01, "share", _HELD_REMEDY)] if schedule.limits.max_in_flight else []),
    ]


def failed(gates: Sequence[Gate]) -> list[Gate]:
    return [gate for gate in gates if gate.passed is False]


def quantity(value: float | None, unit: str) -> str:
    """A gate's number as a person reads it."""
    if value is None:
        return "not measured"
    return f"{value * 1000:.1f} ms" if unit == "s" else f"{value:.1%}"


_LENGTH_REMEDY = (
    "outputs are not as long as asked for; the server must honour ignore_eos and min_tokens, or with --plain the model "
    "must not end by itself"
)
_PROMPT_REMEDY = "in the server's tokens prompts are not as long as asked for; its tokenizer splits plain English words"
_SHORTFALL_REMEDY = "the server answers fewer requests a second than come; lower --rate"
_DRIFT_REMEDY = "answers took ever longer, or ever shorter; lower the load, or let more --requests settle"
_HELD_REMEDY = "requests left late, as --max-in-flight were under way; raise it, or lower --rate"
_CACHE_REMEDY = "turn the server's prefix cache off, restart it, or let the run choose its --nonce"
_OWN_TOKENS = 2  # that a server may add to a prompt, such as one that begins a text
_GAPS_S = 0.010  # a late loop blurs the gaps between tokens, too, even where the first token takes long


def lag_limit_s(records: Sequence[Record]) -> float:
    """A twentieth of the median time to the first token, which lateness adds to; but 1 ms, as timers are no finer."""
    times = [first_token(record) - sent(record) for record in records if record.error is None]
    return max(0.001, 0.05 * median(times)) if times else 0.001


def _errors(records: Sequence[Record]) -> float | None:
    """Requests that an interrupt has cut off are no errors of the server."""
    kinds = [error_kind(record) for record in records if error_kind(record) != "cut off"]
    return sum(map(bool, kinds)) / len(kinds) if kinds else None


def send_lag(record: Record) -> float | None:
    """How late the client was, without the time that the server took to accept the connection.

    None where the request was never sent, or was sent twice: the server closed the connection, and the time is its own.
    None where it was held back, as that was asked for.
    """
    if record.sent_at is None or record.reconnected or record.held:
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


def _wrong_prompts(requests: Sequence[Request], records: Sequence[Record], own: Own) -> float | None:
    """How far the server's count of prompt tokens is from the planned one, beyond its own."""
    of = {request.index: request for request in requests}
    both = [(of[record.index].prompt_tokens, record.prompt_tokens, len(of[record.index].history)) for record in records]
    known = [(asked, said, before) for asked, said, before in both if asked is not None and said is not None]
    if not known or own.template_tokens is None or own.message_tokens is None:
        return None
    asked, counted, messages = (sum(column) for column in zip(*known, strict=True))
    added = own.template_tokens * len(known) + own.message_tokens * messages
    return max(0, abs(counted - asked - added) - _OWN_TOKENS * len(known)) / asked


def _shared(requests: Sequence[Request], records: Sequence[Record]) -> float:
    """What a prefix cache is meant to find of the requests that were sent."""
    sent_ones = {record.index for record in records}
    return shared_share([request for request in requests if request.index in sent_ones])


def _held(records: Sequence[Record]) -> float | None:
    return sum(record.held for record in records) / len(records) if records else None


def _cached(records: Sequence[Record], by_counters: float | None, template_tokens: int | None) -> float | None:
    """Share of the prompt tokens that the server found in its prefix cache, by its answers or its counters.

    A chat template, which all prompts begin with, may be found there.
    """
    known = [record for record in records if record.prompt_tokens]
    told = [record for record in known if record.cached_tokens is not None]
    by_answers = sum(record.cached_tokens or 0 for record in told) / _prompts(told) if told else None
    shares = [share for share in (by_answers, by_counters) if share is not None]
    if not shares or template_tokens is None:
        return None
    of_template = template_tokens * len(known) / _prompts(known) if template_tokens else 0.0
    return max(0.0, max(shares) - of_template)


def _prompts(records: Sequence[Record]) -> int:
    return sum(record.prompt_tokens or 0 for record in records)
