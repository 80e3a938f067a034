"""The report as one HTML file: no script, no network, light and dark, fit for print."""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise
from typing import Any

from twofour.bench.load.gates import quantity
from twofour.bench.report import charts, rows, views
from twofour.bench.report.arms import arm_label
from twofour.bench.report.charts import Bar, Estimate
from twofour.bench.report.figure import Figure, distribution
from twofour.bench.report.rows import UNKNOWN, Document, Row
from twofour.prune.label.pages import rendered

# The seconds that one record gives.
Seconds = Callable[[Mapping[str, Any]], Iterable[float]]


def page(document: Document) -> str:
    return rendered(
        "twofour.bench.report",
        "page.html",
        {"quantity": quantity, "kernels": rows.kernels_text},
        document=document,
        headline=rows.headline(document),
        price_dated=rows.dated(document) if (document["cost"] or {}).get("price") else "",
        arms={name: arm_label(name, document["arms"]) for name in document["arms"]},
        groups=_groups(document),
        cards=_cards(document),
        figures=figures(document),
        views=list(views.lines(document)),
        unknown=UNKNOWN,
    )


def figures(document: Document) -> list[Figure]:
    return [
        _ratios(document),
        _distribution(document, "Time to first token", "From the request sent to its first token.", _ttft),
        _distribution(document, "Gap between tokens", "Every wait between two chunks of an answer, pooled.", _gaps),
        _bars("Memory", "Resident bytes of weights, as the servers report them.", _memory(document)),
        _bars("Cost", _cost_caption(document), _cost(document)),
        _bars("Quality", _quality_caption(document), _quality(document)),
    ]


def _groups(document: Document) -> list[tuple[str, list[Row]]]:
    by_group = groupby(rows.rows(document), key=lambda row: row.group)
    return [(group, list(members)) for group, members in by_group]


_CARDS = {
    "perplexity": "perplexity",
    "time to first token (median)": "time to first token",
    "inter-token latency (TPOT, mean)": "inter-token latency",
    "throughput, output tokens/s": "throughput",
    "weights, resident": "weight memory",
    "$ per million tokens": "cost per token",
}


def _cards(document: Document) -> list[tuple[str, Row]]:
    return [(_CARDS[row.label], row) for row in rows.rows(document) if row.label in _CARDS]


def _ratios(document: Document) -> Figure:
    measured = [row for row in rows.rows(document) if row.ratio.point]
    estimates = [
        Estimate(label, ratio.point, ratio.low, ratio.high, ratio.verdict or "unclear", ratio.times)
        for label, row in _cards(document)
        if (ratio := row.ratio).point
    ]
    dense = arm_label("dense", document["arms"])
    caption = f"2:4 over {dense}, with 95 % intervals where rounds differ. The line is 1: no difference."
    chart = charts.ratios(f"Ratios of 2:4 to {dense}", caption, estimates) if estimates else None
    cells = [[row.label, row.ratio.times, row.ratio.interval or "-", row.ratio.word] for row in measured]
    return Figure(f"2:4 against {dense}", caption, chart, ("quantity", "ratio", "interval", "2:4 is"), cells)


def _distribution(document: Document, title: str, caption: str, of: Seconds) -> Figure:
    arms = {arm: list(_pooled(document, arm, of)) for arm in document["arms"]}
    return distribution(title, caption, arms, {arm: arm_label(arm, arms) for arm in arms})


def _pooled(document: Document, arm: str, of: Seconds) -> Iterator[float]:
    """Over all runs of an arm, of the requests that ended well and were sent within the measured window."""
    for run in document["runs"]:
        window = run["summary"]["window_s"]
        for record in run["records"] if run["arm"] == arm and window else ():
            if record["error"] is None and window[0] <= record["sent_at"] <= window[1]:
                yield from of(record)


def _ttft(record: Mapping[str, Any]) -> list[float]:
    return [record["chunks"][0][0] - record["sent_at"]]


def _gaps(record: Mapping[str, Any]) -> list[float]:
    return [after[0] - before[0] for before, after in pairwise(record["chunks"])]


def _bars(title: str, caption: str, groups: Sequence[Bar]) -> Figure:
    measured = [bar for bar in groups if any(value is not None for value in bar.values.values())]
    cells = [[bar.name, *bar.labels.values()] for bar in groups]
    chart = charts.bars(title, caption, measured) if measured else None
    return Figure(title, caption, chart, ("", *_labels(groups[0].values)), cells)


def _labels(arms: Collection[str]) -> list[str]:
    return [arm_label(arm, arms) for arm in arms]


def _bar(name: str, values: Mapping[str, float | None], form: Callable[[Any], str]) -> Bar:
    return Bar(name, values, {arm: form(value) for arm, value in values.items()})


def _memory(document: Document) -> list[Bar]:
    held = {arm: document["memory"][arm] or {} for arm in document["arms"]}
    named = {
        "weight_bytes": ("all weights", rows.megabytes),
        "linear_bytes": ("of it in the decoder linears", rows.megabytes),
        "device_peak_bytes": ("peak of the engine, loading too", rows.megabytes),
        "kv_capacity_tokens": ("room for tokens in the KV cache", rows.count),
    }
    return [
        _bar(label, {arm: each.get(name) for arm, each in held.items()}, form) for name, (label, form) in named.items()
    ]


def _cost(document: Document) -> list[Bar]:
    cost = document["cost"] or {}
    named = {
        "blended": "all tokens, blended",
        "split_input": "input tokens (output counted 4 times)",
        "split_output": "output tokens, likewise",
    }
    held = {name: cost.get(name) or {} for name in named}
    return [
        _bar(label, {arm: held[name].get(arm) for arm in document["arms"]}, rows.dollars)
        for name, label in named.items()
    ]


def _cost_caption(document: Document) -> str:
    price = (document["cost"] or {}).get("price")
    if not price:
        return "Dollars per million tokens: no price."
    return f"Dollars per million tokens at ${price['usd_per_hour']:g} per hour ({price['name']}), fully used."


def _quality(document: Document) -> list[Bar]:
    quality = document["quality"] or {}
    perplexities = {arm: quality.get(f"{arm}_perplexity") for arm in ("dense", "sparse")}
    agreement = quality.get("agreement")
    shares = {"dense": None if agreement is None else 1.0, "sparse": agreement}
    return [
        _bar("perplexity (lower is better)", perplexities, rows.plain),
        _bar("same likeliest token as dense", shares, rows.percent),
    ]


def _quality_caption(document: Document) -> str:
    quality = document["quality"]
    if not quality:
        return "Quality against the dense model: not measured."
    kl = UNKNOWN if quality["kl"] is None else f"{quality['kl']:.4f} nats per token"
    return f"On {quality['tokens']:,} tokens, {quality['text']} ({quality['source']}). KL to dense: {kl}."
