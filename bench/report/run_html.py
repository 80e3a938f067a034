"""One run as one HTML file: no script, no network, light and dark, fit for a phone and for print."""

from collections.abc import Sequence
from typing import NamedTuple

from twofour.bench.load import gaps, metrics, over_time, told
from twofour.bench.load.gates import failed, quantity
from twofour.bench.load.records import Record
from twofour.bench.load.run import Run
from twofour.bench.load.stored import read
from twofour.bench.load.table import ROWS, asked
from twofour.bench.load.wire import shown
from twofour.bench.report import figure, rows
from twofour.bench.report.figure import Figure
from twofour.bench.report.rows import UNKNOWN, Document
from twofour.bench.report.timeline import Units
from twofour.bench.stats import FEWEST, Distribution, named
from twofour.prune.label.pages import rendered

HEAD = ("milliseconds", "n", "real n", "mean", "min", *(f"p{p}" for p in FEWEST), "max")


class Card(NamedTuple):
    what: str
    big: str
    detail: str


def page(document: Document, run: Run | None = None) -> str:
    """run: that of the document, whose requests may then not be in it; None: it is read from there."""
    run = run or read(document)
    return rendered(
        "twofour.bench.report",
        "run.html",
        {"quantity": quantity},
        document=document,
        run=run,
        url=shown(run.service.url),
        headline=headline(run),
        asked=f"{asked(run.schedule)}, nonce {run.nonce}",
        failed=failed(run.gates),
        cards=cards(run),
        head=HEAD,
        latencies=[_cells(label, getattr(run.summary, name)) for name, label in ROWS.items()],
        figures=figures(run),
        again=again(document, run.nonce),
        beside=told.beside(run),
        held=[*(told.memory(run.server.held) if run.server else []), *told.energy(run)],
        unknown=UNKNOWN,
    )


def headline(run: Run) -> str:
    """What the server did, in one sentence."""
    summary, first = run.summary, _first(run)
    if not summary.completed:
        return f"None of {summary.requests} requests ended well."
    return (
        f"The first token comes after {rows.milliseconds(first.p50)} (median), each further one after "
        f"{rows.milliseconds(summary.tpot.mean)}; {rows.plain(summary.output_tokens_per_s)} output tokens a second."
    )


def cards(run: Run) -> list[Card]:
    summary, first = run.summary, _first(run)
    return [
        Card("time to first token", rows.milliseconds(first.p50), f"median; p95 {rows.milliseconds(first.p95)}"),
        Card("time per output token", rows.milliseconds(summary.tpot.mean), "mean, after the first"),
        Card("longest gaps", rows.milliseconds(summary.itl_gap.p99), "p99 between two chunks"),
        Card("whole answer", rows.milliseconds(summary.e2e.p50), f"median; p95 {rows.milliseconds(summary.e2e.p95)}"),
        Card("throughput", rows.plain(summary.output_tokens_per_s), "output tokens/s"),
        Card(
            "requests", rows.plain(summary.requests_per_s), f"a second; {summary.failed} of {summary.requests} failed"
        ),
    ]


def figures(run: Run) -> list[Figure]:
    good = [record for record in metrics.in_window(run.records, _window(run)) if record.error is None]
    return [_first_tokens(run, good), _gaps(good), *_over_time(run)]


def again(document: Document, nonce: str) -> str:
    """The command that sends the same once more."""
    command = [word for word in document.get("command", [])]
    return " ".join(command if "--nonce" in command else [*command, "--nonce", nonce])


def _first(run: Run) -> Distribution:
    """In an open loop the time that a request waits to be sent counts."""
    return run.summary.ttft_sched if run.schedule.concurrency is None else run.summary.ttft


def _window(run: Run) -> tuple[float, float] | None:
    window = run.summary.window_s
    return window and (window[0] + run.started_at, window[1] + run.started_at)


def _cells(label: str, values: Distribution) -> list[str]:
    cells = [label.strip(), f"{values.n:,}", f"{values.independent:,}", _ms(values.mean), _ms(values.min)]
    for p, fewest in FEWEST.items():
        found = getattr(values, named(p))
        cells.append(f"n < {fewest:,}" if found is None and values.n else _ms(found))
    return [*cells, _ms(values.max)]


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:,.2f}"


def _first_tokens(run: Run, good: Sequence[Record]) -> Figure:
    found = metrics.quantities(good)
    names = {"own": "from the request sent"}
    seconds = {"own": found["ttft"]}
    if run.schedule.concurrency is None:
        names["dense"], seconds["dense"] = "from the scheduled time", found["ttft_sched"]
    return figure.distribution(
        "Time to first token", "To the first token of an answer.", seconds, names, len(names) > 1
    )


def _gaps(good: Sequence[Record]) -> Figure:
    pool, _ = gaps.pooled(good)
    caption = "Every wait between two chunks of an answer, pooled."
    return figure.distribution("Gap between tokens", caption, {"own": pool}, {"own": "gap"})


def _over_time(run: Run) -> list[Figure]:
    """What happened when; the shaded part is what counts."""
    first = [(at, 1000 * seconds) for at, seconds in over_time.first_token_s(run)]
    load = {"own": ("ended", over_time.ended_per_s(run)), "dense": ("sent", over_time.sent_per_s(run))}
    if run.schedule.concurrency is None:
        load["torch_dense"] = ("due", over_time.due_per_s(run))
    flying = {"own": ("by the client", over_time.under_way(run)), **_polled(run, _IN_FLIGHT)}
    tokens = {"own": ("by the client", over_time.tokens_per_s(run))}
    if run.server:
        tokens["dense"] = ("by the server", over_time.binned(run, run.server.rate("output_tokens")))
    cache = _polled(run, _CACHE, 100)
    level = "Means of the requests sent at that time: level where the server keeps up."
    drawn = [
        ("Load", "Requests by the second. Shaded: what counts.", load, "requests/s"),
        ("In flight", "Requests sent whose answers have not ended.", flying, "requests"),
        ("Output tokens", "Tokens by the second in which they arrived.", tokens, "tokens/s"),
        ("Time to first token, over the run", level, {"own": ("mean", first)}, "ms"),
        *([("KV cache", "How full the server says that it is.", cache, "%")] if cache else []),
    ]
    return [
        figure.lines(title, caption, lines, Units("seconds after the start", unit), run.summary.window_s)
        for title, caption, lines, unit in drawn
    ]


_IN_FLIGHT = {"dense": ("running, by the server", "running"), "torch_dense": ("waiting, by the server", "waiting")}
_CACHE = {"own": ("in use", "kv_cache_usage")}


def _polled(run: Run, names: dict[str, tuple[str, str]], times: float = 1) -> dict[str, tuple[str, over_time.Points]]:
    """Lines of what was seen of the server, if anything was."""
    seen = {line: (label, run.server.series(name) if run.server else []) for line, (label, name) in names.items()}
    scaled = {line: (label, [(at, times * value) for at, value in points]) for line, (label, points) in seen.items()}
    return {line: (label, over_time.binned(run, points)) for line, (label, points) in scaled.items() if points}
