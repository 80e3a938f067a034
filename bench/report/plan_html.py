"""A plan as one HTML file: what machines keep the promise, what that costs, and what would change the answer."""

import shlex
from collections.abc import Sequence
from math import ceil

from twofour.bench.report import figure, plan_rows, rows
from twofour.bench.report.figure import Figure
from twofour.bench.report.plan_rows import Document
from twofour.bench.report.rows import UNKNOWN
from twofour.bench.report.timeline import Points, Units
from twofour.prune.label.pages import rendered

LINES = ("own", "dense", "fourth", "fifth", "sixth")  # classes of the style sheet, in turn
_PROMISE = "torch_dense"
_FAR = 2.0  # times the promise: what is slower is not drawn
_POINTS = 60
_SHARES = [each / 20 for each in range(4, 21)]


def page(document: Document) -> str:
    return rendered(
        "twofour.bench.report",
        "plan.html",
        document=document,
        headline=plan_rows.headline(document),
        remarks=list(plan_rows.remarks(document)),
        asked=plan_rows.asked(document["asked"]),
        cards=cards(document),
        cells=plan_rows.cells(document),
        figures=figures(document),
        sensitivity=sensitivity(document),
        unknown=UNKNOWN,
        command=shlex.join(document.get("command", ())),
    )


def cards(document: Document) -> list[tuple[str, str, str]]:
    """Of the chosen option: what, how much, and what to say beside it."""
    best = plan_rows.chosen(document)
    spare = document["asked"]["spare"]
    said = [
        ("machines", str(best["machines"]), f"of {best['name']}, {spare} of them spare"),
        ("headroom", rows.percent(best["headroom"]), "more traffic, spares aside"),
        ("what binds", best["replica"]["binding"].replace("_", " "), "is missed first when there is more"),
        ("quality loss", plan_rows.quality(best), "as its model states it"),
    ]
    if best["cost"]:
        said.insert(1, ("a month", f"${best['cost']['usd_per_month']:,.0f}", "for all machines, used or not"))
    return said


def figures(document: Document) -> list[Figure]:
    terms = [term["term"] for term in document["options"][0]["alone"]]
    drawn = [_latency(document, place, term) for place, term in enumerate(terms)]
    return [*drawn, _against_rate(document), *_against_use(document)]


def _latency(document: Document, place: int, term: str) -> Figure:
    options = _shown(document)
    limit = 1000 * options[0]["alone"][place]["limit_s"]
    lines = {line: (option["name"], _curve(option, place, limit)) for line, option in zip(LINES, options, strict=False)}
    rates = [rate for _, points in lines.values() for rate, _ in points] or [0.0]
    promise = {_PROMISE: ("the promise", [(min(rates), limit), (max(rates), limit)])}
    caption = "By the rate that one replica gets, as simulated with the same requests; the dotted line is the promise."
    title = f"{term.replace('_', ' ')} against rate"
    return figure.lines(title, caption, lines | promise, Units("requests/s of one replica", "ms"))


def _curve(option: Document, place: int, limit: float) -> Points:
    found = [(point["rate"], point["terms"][place]["found_s"]) for point in option["replica"]["curve"]]
    return [(rate, 1000 * value) for rate, value in found if value is not None and 1000 * value <= _FAR * limit]


def _against_rate(document: Document) -> Figure:
    """Whole machines, spares too: dollars a month where all prices are known."""
    options = [option for option in _shown(document) if option["machines"] is not None]
    priced = all(option["cost"] for option in options)
    peak, spare = document["asked"]["peak"], document["asked"]["spare"]
    rates = [2 * peak * (number + 1) / _POINTS for number in range(_POINTS)]

    def needed(option: Document, rate: float) -> float:
        least = option["replicas"] if rate >= peak * (1 - 1e-9) else 1
        machines = max(least, ceil(rate / _each(document, option) - 1e-9)) + spare
        return machines * option["cost"]["usd_per_month"] / option["machines"] if priced else machines

    lines = {
        line: (option["name"], [(rate, needed(option, rate)) for rate in rates])
        for line, option in zip(LINES, options, strict=False)
    }
    title, unit = ("Cost against rate", "$ a month") if priced else ("Machines against rate", "machines")
    caption = f"Whole machines, spares too, up to twice the peak of {peak:.4g} requests/s."
    return figure.lines(title, caption, lines, Units("requests/s at the peak", unit))


def _each(document: Document, option: Document) -> float:
    """Requests per second of a replica in its fleet."""
    highest: float = document["asked"]["peak"] * (1 + option["headroom"]) / option["replicas"]
    return highest


def _against_use(document: Document) -> list[Figure]:
    """Dollars per million tokens by how much of the capacity is used; nothing without prices."""
    options = [option for option in _shown(document) if option["cost"]]
    if not options:
        return []
    lines = {
        line: (option["name"], [(100 * share, option["cost"]["at_capacity"]["blended"] / share) for share in _SHARES])
        for line, option in zip(LINES, options, strict=False)
    }
    caption = "All tokens, blended. What is paid for and not used costs as much."
    return [figure.lines("Cost against utilisation", caption, lines, Units("% of capacity used", "$ per M tokens"))]


def sensitivity(document: Document) -> list[tuple[str, ...]]:
    """Of each priced option: its price, and the one at which it costs as much a month as the best of the others."""
    priced = [option for option in document["options"] if option["cost"]]
    found = list[tuple[str, ...]]()
    for option in priced if len(priced) > 1 else ():
        others = [(each["cost"]["usd_per_month"], each["name"]) for each in priced if each is not option]
        least, name = min(others)
        now = option["price"]["usd_per_hour"]
        even = now * least / option["cost"]["usd_per_month"]
        found.append((option["name"], f"${now:,.2f}", f"${even:,.2f}", name))
    return found


def _shown(document: Document) -> Sequence[Document]:
    """No more options than lines can be told apart."""
    shown: Sequence[Document] = document["options"][: len(LINES)]
    return shown
