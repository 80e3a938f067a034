"""What a run says: latencies by their definitions, throughput over a window, failures counted.

All durations are seconds. `sent` is when the write of the request returned, `first` and `last` the arrival of
the first and last chunk with tokens, N the output tokens by the server's usage, n1 those in the first chunk. Reasoning
that the server counts and does not send belongs to N of tpot_vllm and tpot_incl, as those tools have it, and no other.

- ttft: first - sent; ttft_sched: first - scheduled, to be judged in an open loop; first_byte: headers - sent
- itl_gap: every time between two chunks, pooled over the requests, weight 1 per gap: shows stalls
- itl_tok: the same gap divided by the tokens of its chunk, with their number as its weight
  Gaps of one request are alike: whether there are enough for a percentile, stats.independent says
- tpot: (last - first) / (N - n1); tpot_vllm: (last - first) / (N - 1); tpot_incl: (last - sent) / N
- e2e: last - sent; the usage that follows the last token does not count

Latencies are those of the requests sent within the window. Unless one is given, it reaches from the first to
the last moment at which as many requests were under way as in the median over time: that leaves out ramp and
drain. Throughput is that of the requests that ended well: their tokens that arrived within the window, and
those that ended in it; a prompt counts when its first token arrives.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from math import inf, isfinite
from typing import Any

import numpy as np

from twofour.bench.load import gaps
from twofour.bench.load.records import Record
from twofour.bench.stats import Distribution, distribution


@dataclass(frozen=True)
class Summary:
    """A run in numbers. `token_counts`: `per chunk` is exact; `per request`, the total is known and spread
    evenly over the chunks; `none`, the server sent no usage and whatever needs a number of tokens is None.
    """

    requests: int
    completed: int
    failed: int
    errors: dict[str, int]  # kind -> requests
    reconnects: int
    measured: int  # requests sent within the window, failed ones too
    duration_s: float | None  # first request sent to last request ended
    window_s: tuple[float, float] | None  # after the start of the run
    prompt_tokens: int | None  # totals of the requests that ended well
    output_tokens: int | None
    unsent_tokens: int  # of the output tokens: reasoning that the server counts and does not send
    kinds: dict[str, float]  # shares of the tokens that were sent: text, reasoning, tool call
    token_counts: str
    tokens_per_chunk: float | None
    coalesced_reads: float | None  # share of the reads that brought more than one chunk
    ttft: Distribution
    ttft_sched: Distribution
    first_byte: Distribution
    itl_gap: Distribution
    itl_tok: Distribution
    tpot: Distribution
    tpot_vllm: Distribution
    tpot_incl: Distribution
    e2e: Distribution
    output_tokens_per_s: float | None
    total_tokens_per_s: float | None
    requests_per_s: float | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON: unknown and infinite are None."""
        plain: dict[str, Any] = _finite(asdict(self))
        return plain


def summarise(records: Sequence[Record], started_at: float, window: tuple[float, float] | None = None) -> Summary:
    """Sum up a run that began at `started_at`; the ends of `window` are `perf_counter` times, as all else."""
    whole, window = whole_window(records), window or steady_window(records)
    good = [record for record in records if record.error is None]
    counts = token_counts(good)
    return Summary(
        requests=len(records),
        completed=len(good),
        failed=len(records) - len(good),
        errors=dict(Counter(error_kind(record) for record in records if record.error is not None)),
        reconnects=sum(record.reconnected for record in records),
        duration_s=whole[1] - whole[0] if whole else None,
        window_s=(window[0] - started_at, window[1] - started_at) if window else None,
        prompt_tokens=_total(record.prompt_tokens for record in good),
        output_tokens=_total(record.output_tokens for record in good),
        unsent_tokens=sum(map(unsent, good)),
        kinds=_shares(good),
        token_counts=counts,
        tokens_per_chunk=_tokens_per_chunk(good),
        coalesced_reads=_coalesced_share(good),
        **latencies(in_window(records, window), counts),
        **_throughputs(good, window, counts),
    )


def error_kind(record: Record) -> str:
    """What comes before the colon of an error: the same for all requests that failed in the same way."""
    return (record.error or "").partition(":")[0]


def token_counts(good: Sequence[Record]) -> str:
    if not good or any(record.output_tokens is None for record in good):
        return "none"
    exact = all(record.chunks.total == _sent_tokens(record) for record in good)
    return "per chunk" if exact else "per request"


def steady_window(records: Sequence[Record]) -> tuple[float, float] | None:
    steps = under_way(records)
    spans = sorted((count, after - at) for (at, count), (after, _) in pairwise(steps))
    half_s = sum(span for _, span in spans) / 2
    for count, span in spans:
        half_s -= span
        if half_s <= 0:
            busy = [index for index, (_, level) in enumerate(steps) if level >= max(count, 1)]
            return (steps[busy[0]][0], steps[busy[-1] + 1][0]) if busy else None  # all were refused in no time
    return None


def in_window(records: Sequence[Record], window: tuple[float, float] | None) -> list[Record]:
    """The requests that were sent within the window; without a window, none."""
    return [record for record in records if window and window[0] <= sent(record) <= window[1]]


def steady(records: Sequence[Record]) -> list[Record]:
    """The requests of one run that count: without the lone first one, the ramp and the drain."""
    return in_window(records, steady_window(records))


def whole_window(records: Sequence[Record]) -> tuple[float, float] | None:
    """From the first request sent to the last one ended."""
    begun = [record.sent_at for record in records if record.sent_at is not None]
    ended = [record.done_at for record in records if record.done_at is not None]
    return (min(begun), max(ended)) if begun and ended else None


def under_way(records: Sequence[Record]) -> list[tuple[float, int]]:
    """The moments at which requests began or ended, in order, and how many were under way from then on."""
    changes: Counter[float] = Counter()
    for record in records:
        if record.sent_at is not None and record.done_at is not None:
            changes[record.sent_at] += 1
            changes[record.done_at] -= 1
    level, steps = 0, []
    for at in sorted(changes):
        level += changes[at]
        steps.append((at, level))
    return steps


def latencies(inside: Sequence[Record], counts: str) -> dict[str, Any]:
    """The distributions of these requests, by name, and how many they are. counts: see Summary.token_counts."""
    good = [record for record in inside if record.error is None]
    failed = len(inside) - len(good)
    each = quantities(good)
    by_gap = gaps.by_gap(good)
    return {
        "measured": len(inside),
        **{name: distribution(values, failed) for name, values in each.items()},
        "itl_gap": by_gap,
        "itl_tok": gaps.by_token(good, by_gap) if counts == "per chunk" else distribution([]),
    }


def quantities(good: Sequence[Record]) -> dict[str, list[float]]:
    """What is measured of each request, by name."""
    return {
        "ttft": [first_token(record) - sent(record) for record in good],
        "ttft_sched": [first_token(record) - record.scheduled_at for record in good],
        "first_byte": [record.headers_at - sent(record) for record in good if record.headers_at is not None],
        "tpot": _known(tpot(record) for record in good),
        "tpot_vllm": _known(tpot_vllm(record) for record in good),
        "tpot_incl": _known(tpot_incl(record) for record in good),
        "e2e": [last_token(record) - sent(record) for record in good],
    }


def sent(record: Record) -> float:
    return record.scheduled_at if record.sent_at is None else record.sent_at


def first_token(record: Record) -> float:
    return float(record.chunks.at[0])


def last_token(record: Record) -> float:
    return float(record.chunks.at[-1])


def tpot(record: Record) -> float | None:
    total = _sent_tokens(record)
    if total is None or total < 2:
        return None
    later = total - int(record.chunks.tokens[0]) * scale(record)
    return (last_token(record) - first_token(record)) / later if later > 0 else None


def tpot_vllm(record: Record) -> float | None:
    total = record.output_tokens
    return None if total is None or total < 2 else (last_token(record) - first_token(record)) / (total - 1)


def tpot_incl(record: Record) -> float | None:
    return (last_token(record) - sent(record)) / record.output_tokens if record.output_tokens else None


def _throughputs(good: Sequence[Record], window: tuple[float, float] | None, counts: str) -> dict[str, Any]:
    if window is None or window[1] <= window[0]:
        return dict.fromkeys(["output_tokens_per_s", "total_tokens_per_s", "requests_per_s"])
    start, end = window
    span = end - start
    output = sum(tokens_within(record, start, end) * scale(record) for record in good)
    prompts = [record.prompt_tokens for record in good if start < first_token(record) <= end]
    known = counts != "none" and None not in prompts
    return {
        "output_tokens_per_s": output / span if counts != "none" else None,
        "total_tokens_per_s": (output + sum(filter(None, prompts))) / span if known else None,
        "requests_per_s": sum(start < (record.done_at or inf) <= end for record in good) / span,
    }


def tokens_within(record: Record, start: float, end: float) -> int:
    """Those of the chunks that came after `start` and not after `end`."""
    first, last = np.searchsorted(record.chunks.at, [start, end], side="right")
    return int(record.chunks.tokens[first:last].sum())


def unsent(record: Record) -> int:
    """Reasoning that the server counts, and in no chunk; 0 where it also sends some, as it then sends all."""
    whole = record.chunks.total == record.output_tokens
    return 0 if "reasoning" in record.kinds or whole else record.reasoning_tokens or 0


def _sent_tokens(record: Record) -> int | None:
    return None if record.output_tokens is None else record.output_tokens - unsent(record)


def _shares(good: Sequence[Record]) -> dict[str, float]:
    kinds: Counter[str] = Counter()
    for record in good:
        kinds.update(record.kinds)
    return {kind: tokens / kinds.total() for kind, tokens in kinds.items()}


def scale(record: Record) -> float:
    """What to multiply the tokens of a chunk by: 1 where the server says how many each holds."""
    return (_sent_tokens(record) or 0) / record.chunks.total


def _tokens_per_chunk(good: Sequence[Record]) -> float | None:
    tokens = _total(map(_sent_tokens, good))
    return tokens / sum(len(record.chunks) for record in good) if tokens is not None else None


def _coalesced_share(good: Sequence[Record]) -> float | None:
    reads = sum(int(np.count_nonzero(gaps.of(record))) + 1 for record in good)
    return sum(map(gaps.coalesced, good)) / reads if reads else None


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _total(values: Iterable[int | None]) -> int | None:
    """The sum; None if one is unknown, or there are none."""
    seen = list(values)
    return None if not seen or None in seen else sum(filter(None, seen))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(inner) for key, inner in value.items()}
    if isinstance(value, tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not isfinite(value) else value
