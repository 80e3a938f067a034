"""What the server and its machine say of a run, as text: beside what the client measured, and memory and energy.

Both sides are means and sums over all requests that ended well, ramp and drain too, as the server's counters know no
window.
"""

from collections.abc import Iterator
from typing import NamedTuple

from twofour.bench.load import metrics
from twofour.bench.load.run import Run
from twofour.bench.load.server_side import Held, Totals

_GIB = 2**30


class Beside(NamedTuple):
    what: str
    by_server: str
    by_client: str


def beside(run: Run) -> list[Beside]:
    """Nothing where the server's counters were not seen."""
    totals = run.server.totals if run.server else None
    if totals is None:
        return []
    whole = metrics.summarise(run.records, run.started_at, metrics.whole_window(run.records))
    gaps = whole.itl_tok.mean if whole.itl_tok.n else whole.itl_gap.mean
    return [row for row in _rows(totals, run, whole.ttft.mean, gaps) if row.by_server != "-"]


def _rows(totals: Totals, run: Run, ttft: float | None, gap: float | None) -> Iterator[Beside]:
    yield Beside("time to first token, mean", _ms(totals.ttft_s), _ms(ttft))
    yield Beside("of it in the server's queue", _ms(totals.queue_s), "")
    yield Beside("time between tokens, mean", _ms(totals.itl_s), _ms(gap))
    yield Beside("output tokens", _count(totals.output_tokens), _count(run.summary.output_tokens))
    yield Beside("prompt tokens", _count(totals.prompt_tokens), _count(run.summary.prompt_tokens))
    yield Beside("preemptions", _count(totals.preemptions), "")


def memory(held: Held) -> list[tuple[str, str]]:
    """What is known of it."""
    named = {
        "weights": _gib(held.weight_bytes),
        "room in the KV cache": held.kv_capacity_tokens and f"{held.kv_capacity_tokens:,} tokens",
        "peak of the server's allocator": _gib(held.device_peak_bytes),
        "in use on the GPUs here, by the driver": _gib(held.gpu_used_bytes),
        "resident, of the server's processes": _gib(held.resident_bytes),
    }
    return [(what, said) for what, said in named.items() if said]


def energy(run: Run) -> list[tuple[str, str]]:
    """Of the whole machine, from the first look to the last."""
    totals, tokens = (run.server.totals if run.server else None), run.summary.output_tokens
    if totals is None:
        return []
    named = {"GPUs": totals.gpu_j, "CPU packages": totals.cpu_j}
    return [(what, _joules(joules, tokens)) for what, joules in named.items() if joules is not None]


def _joules(joules: float, tokens: int | None) -> str:
    return f"{joules:,.0f} J" + (f", {joules / tokens:.4g} J per output token" if tokens else "")


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.2f} ms"


def _count(number: float | None) -> str:
    return "-" if number is None else f"{number:,.0f}"


def _gib(size: int | None) -> str | None:
    return None if size is None else f"{size / _GIB:.2f} GiB"
