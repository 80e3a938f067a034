"""A sweep as one HTML file: what users get against what the machine gives, the limits, and what that costs.

`spend`, where a price is given: of each server at the highest rate that keeps the SLO, and at a stated traffic.
"""

from collections.abc import Callable, Mapping, Sequence
from math import ceil
from statistics import median
from typing import Any, NamedTuple

from twofour.bench.load.gates import quantity
from twofour.bench.money.cost import cost
from twofour.bench.report import figure, rows
from twofour.bench.report.figure import Figure
from twofour.bench.report.rows import UNKNOWN, Document
from twofour.bench.report.timeline import Points, Units
from twofour.prune.label.pages import rendered

LINES = ("own", "dense", "torch_dense", "fourth", "fifth", "sixth")  # classes of the style sheet, in turn

Cell = Mapping[str, Any]


class Spend(NamedTuple):
    """Of one server at its limit: dollars per million tokens, fully used; and at a traffic, by whole machines."""

    server: str
    rate: str
    at_capacity: str
    per_request: str
    machines: str
    at_traffic: str


def page(document: Document, usd_per_hour: float | None = None, traffic: float | None = None) -> str:
    """traffic: requests a second, on average over the day."""
    return rendered(
        "twofour.bench.report",
        "sweep.html",
        {"quantity": quantity},
        document=document,
        servers=[each["name"] for each in document["servers"]],
        headline=headline(document),
        figures=figures(document),
        cells=[_row(cell) for cell in document["cells"]],
        limits=[_limit(limit) for limit in document["limits"] or ()],
        spends=spends(document, usd_per_hour, traffic) if usd_per_hour else [],
        usd_per_hour=usd_per_hour,
        traffic=traffic,
        unknown=UNKNOWN,
    )


def headline(document: Document) -> str:
    """The limit of each server, or what it gave at most."""
    if document["limits"] is not None:
        said = [f"{each['server']} {_rate(each)}" for each in document["limits"]]
        return f"The highest rate that keeps {document['load']['slo']}: {'; '.join(said)}."
    best = {name: max(_tokens(cells), default=None) for name, cells in _by_server(document).items()}
    return f"Output tokens a second at most: {', '.join(f'{name} {rows.plain(rate)}' for name, rate in best.items())}."


def figures(document: Document) -> list[Figure]:
    open_loop = any(cell["rate"] is not None for cell in document["cells"])
    pace = "requests/s" if open_loop else "requests at a time"
    waited = "ttft_sched" if open_loop else "ttft"
    several = _several(len(document["servers"]))
    high = {name: _highest_known(document, name) for name in (waited, "tpot")}

    def at_pace(of: Callable[[Cell], float | None]) -> dict[str, tuple[str, Points]]:
        return _lines(document, lambda cell: cell["rate"] or cell["concurrency"], of)

    drawn = [
        (
            "What a user gets against what the machine gives",
            f"Each dot is a load: up and to the right is better.{several}",
            _lines(document, _per_user, _throughput, by_load=True),
            Units("tokens/s per user", "tokens/s of the machine"),
        ),
        ("Throughput", f"Output tokens, by load.{several}", at_pace(_throughput), Units(pace, "tokens/s")),
        (f"Time to first token, {high[waited]}", f"By load.{several}", at_pace(_ms(waited, high)), Units(pace, "ms")),
        (f"Time per output token, {high['tpot']}", f"By load.{several}", at_pace(_ms("tpot", high)), Units(pace, "ms")),
        *(
            [("Goodput", f"Requests that keep the SLO.{several}", at_pace(_goodput), Units(pace, "requests/s"))]
            if document["load"]["slo"]
            else []
        ),
    ]
    return [figure.lines(title, caption, lines, units, marked=True) for title, caption, lines, units in drawn]


def _several(servers: int) -> str:
    """What more than one line is, as no more than six can be told apart."""
    if servers > len(LINES):
        return f" Each line is a server, of the first {len(LINES)}."
    return " Each line is a server." if servers > 1 else ""


def spends(document: Document, usd_per_hour: float, traffic: float | None) -> list[Spend]:
    """Of the servers whose limit is known."""
    found = []
    for limit in document["limits"] or ():
        ends = [each for each in document["searches"] if each["server"] == limit["server"]]
        tokens = [(each["output_tokens_per_s"], each["total_tokens_per_s"]) for each in ends]
        if limit["rate"] and tokens and all(output and total for output, total in tokens):
            output, total = (median(column) for column in zip(*tokens, strict=True))
            found.append(_spend(limit["server"], limit["rate"]["point"], output, total, usd_per_hour, traffic))
    return found


def _spend(server: str, rate: float, output: float, total: float, usd_per_hour: float, traffic: float | None) -> Spend:
    """A machine that is half used costs twice as much a token; there are only whole machines."""
    full = cost(usd_per_hour, total - output, output).blended
    machines = ceil(traffic / rate) if traffic else None
    used = traffic / (machines * rate) if traffic and machines else None
    return Spend(
        server,
        f"{rate:.3g}",
        rows.dollars(full),
        f"${usd_per_hour / 3600 / rate * 1000:,.4f}",
        str(machines or ""),
        rows.dollars(full / used) if used else "",
    )


def _by_server(document: Document) -> dict[str, list[Cell]]:
    names = [each["name"] for each in document["servers"]]
    return {name: [cell for cell in document["cells"] if cell["server"] == name] for name in names}


def _lines(
    document: Document,
    across: Callable[[Cell], float | None],
    up: Callable[[Cell], float | None],
    by_load: bool = False,
) -> dict[str, tuple[str, Points]]:
    """A line for each of the first six servers; by_load: along the load, whatever is across."""
    lines = dict[str, tuple[str, Points]]()
    for line, (name, cells) in zip(LINES, _by_server(document).items(), strict=False):
        ordered = sorted(cells, key=lambda cell: cell["rate"] or cell["concurrency"])
        points = [(x, y) for cell in ordered if (x := across(cell)) is not None and (y := up(cell)) is not None]
        lines[line] = (name, points if by_load else sorted(points))
    return lines


def _tokens(cells: Sequence[Cell]) -> list[float]:
    return [rate for cell in cells if (rate := _throughput(cell)) is not None]


def _throughput(cell: Cell) -> float | None:
    return median(cell["output_tokens_per_s"]) if cell["output_tokens_per_s"] else None


def _per_user(cell: Cell) -> float | None:
    return 1 / cell["tpot"]["mean"] if cell["tpot"]["mean"] else None


def _highest_known(document: Document, name: str) -> str:
    """p95 where there are enough requests for one."""
    return "p95" if any(cell[name]["p95"] is not None for cell in document["cells"]) else "p50"


def _ms(name: str, high: Mapping[str, str]) -> Callable[[Cell], float | None]:
    return lambda cell: None if (found := cell[name][high[name]]) is None else 1000 * found


def _goodput(cell: Cell) -> float | None:
    known = [value for value in cell["goodput_per_s"] or () if value is not None]
    return median(known) if known else None


def _row(cell: Cell) -> list[str]:
    waited = cell["ttft" if cell["rate"] is None else "ttft_sched"]
    remarks = [*(["over capacity"] if cell["over_capacity"] else []), *cell["invalid"]]
    return [
        f"{cell['concurrency']} at a time" if cell["rate"] is None else f"{cell['rate']:.4g} requests/s",
        cell["server"],
        rows.plain(_throughput(cell)),
        rows.milliseconds(waited["p50"]),
        rows.milliseconds(waited["p95"]),
        rows.milliseconds(cell["tpot"]["mean"]),
        "" if _goodput(cell) is None else rows.plain(_goodput(cell)),
        ", ".join(remarks),
    ]


def _limit(limit: Mapping[str, Any]) -> tuple[str, str, str, str]:
    ratio = limit["of_the_first"]
    spread = rows.interval(ratio["low"], ratio["high"]) if ratio else ""
    return (
        limit["server"],
        _rate(limit),
        f"{rows.times(ratio and ratio['point'])} {spread}".strip(),
        ", ".join(limit["why"]),
    )


def _rate(limit: Mapping[str, Any]) -> str:
    rate = limit["rate"]
    if rate is None:
        return UNKNOWN
    least = "at least " if limit["at_least"] else ""
    return f"{least}{rate['point']:.3g} requests/s {rows.interval(rate['low'], rate['high'])}".strip()
