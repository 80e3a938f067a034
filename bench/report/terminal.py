"""The report as text: a table of dense, 2:4 and their ratio, both answers, whether it may be quoted."""

import textwrap
from collections.abc import Mapping
from itertools import groupby
from typing import Any

from twofour.bench.gates import quantity
from twofour.bench.report.rows import Document, Row, headline, rows

_WIDTH = 104
_COLUMNS = f"{'':34}{'dense':>14}{'2:4':>14}{'2:4 / dense':>13}  {'95 % interval':16} 2:4 is"


def table(document: Document) -> str:
    arms = document["arms"]
    lines = [
        f"dense: {arms['dense']['given']}",
        f"2:4:   {arms['sparse']['given']}",
        f"load:  {document['load']['summary']}",
        f"on:    {document['hardware']['summary']}",
        "",
        _COLUMNS,
        *_groups(document),
        "",
        *_answers(document["samples"]),
        headline(document),
        *_price(document["cost"]),
        *_wrapped(document["notes"]),
        *_gates(document),
    ]
    return "\n".join(lines)


def _groups(document: Document) -> list[str]:
    lines = []
    for group, members in groupby(rows(document), key=lambda row: row.group):
        lines += [group, *(_line(row) for row in members)]
    return lines


def _line(row: Row) -> str:
    cells = f"{row.dense:>14}{row.sparse:>14}{row.ratio:>13}  {row.interval:16}"
    return f"  {row.label:32}{cells} {row.word}".rstrip()


def _answers(samples: Mapping[str, Any]) -> list[str]:
    lines = [f"Both were asked: {samples['question']}"]
    for arm, name in (("dense", "dense"), ("sparse", "2:4")):
        text = "not measured (no chat)" if samples[arm] is None else samples[arm] or "(an empty answer)"
        lines += textwrap.wrap(f"{name:>7}: {text}", _WIDTH, subsequent_indent=" " * 9)
    return [*lines, ""]


def _price(cost: Mapping[str, Any] | None) -> list[str]:
    price = cost and cost["price"]
    if not price:
        return []
    dated = f", as of {price['as_of']}" if price["as_of"] else ""
    hourly = f"${price['usd_per_hour']:g} per hour for {price['name']}"
    return textwrap.wrap(f"Price: {hourly} ({price['source']}{dated}).", _WIDTH)


def _wrapped(notes: list[str]) -> list[str]:
    return [line for note in notes for line in textwrap.wrap(note, _WIDTH)]


def _gates(document: Document) -> list[str]:
    """What failed, and what to do about it."""
    if document["valid"]:
        return ["VALID: all gates passed or were not measurable."]
    failed = [gate for gate in document["gates"] if gate["failed_runs"]]
    lines = [
        f"  {gate['name']}: {quantity(gate['value'], gate['unit'])} at worst, at most "
        f"{quantity(gate['limit'], gate['unit'])}, failed in {gate['failed_runs']} of {gate['runs']} runs; "
        f"{gate['remedy']}"
        for gate in failed
    ]
    return ["INVALID: do not quote these numbers", *lines]
