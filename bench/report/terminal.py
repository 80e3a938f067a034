"""The report as text: dense, 2:4 and their ratio, once by dense baseline; both answers; whether it may be quoted."""

import textwrap
from collections.abc import Iterator, Mapping
from itertools import groupby
from typing import Any

from twofour.bench.load.gates import quantity
from twofour.bench.report import views
from twofour.bench.report.arms import arm_label
from twofour.bench.report.rows import Document, Ratio, headline, kernels_text, price_dated, rows

WIDTH = 104


def table(document: Document) -> str:
    arms = document["arms"]
    lines = [
        f"dense: {arms['dense']['given']}",
        f"2:4:   {arms['sparse']['given']}",
        f"load:  {document['load']['summary']}",
        f"on:    {document['hardware']['summary']}",
        *_kernels(document),
        "",
        *_against_dense(document),
        "",
        *_against_torch_dense(document),
        *views.lines(document),
        *_answers(document["samples"]),
        *textwrap.wrap(headline(document), WIDTH),
        *price_lines((document["cost"] or {}).get("price"), document["started"]),
        *wrapped(document["notes"]),
        *gate_lines(document),
    ]
    return "\n".join(lines)


def _kernels(document: Document) -> list[str]:
    arms = document["arms"]
    ran = [f"{arm_label(name, arms)}: {kernels_text(arm['kernels'])}" for name, arm in arms.items() if arm["kernels"]]
    return textwrap.wrap(f"ran:   {'; '.join(ran)}", WIDTH, subsequent_indent=" " * 7) if ran else []


def _against_dense(document: Document) -> Iterator[str]:
    dense = arm_label("dense", document["arms"])
    yield _columns("", dense)
    for group, members in groupby(rows(document), key=lambda row: row.group):
        yield group
        yield from (_line(row.label, row.dense, row.sparse, row.ratio) for row in members)


def _against_torch_dense(document: Document) -> Iterator[str]:
    """The rows that torch dense has; nothing where it did not run."""
    if "torch_dense" not in document["arms"]:
        return
    yield _columns("Against torch dense", "torch dense")
    shown = [row for row in rows(document) if row.torch_dense]
    yield from (_line(row.label, row.torch_dense, row.sparse, row.to_torch_dense) for row in shown)
    yield ""


def _columns(title: str, dense: str) -> str:
    return f"{title:34}{dense:>14}{'2:4':>14}{'2:4 / dense':>13}  {'95 % interval':16} 2:4 is"


def _line(label: str, dense: str, sparse: str, ratio: Ratio) -> str:
    cells = f"{dense:>14}{sparse:>14}{ratio.times:>13}  {ratio.interval:16}"
    return f"  {label:32}{cells} {ratio.word}".rstrip()


def _answers(samples: Mapping[str, Any]) -> list[str]:
    lines = [f"Both were asked: {samples['question']}"]
    for arm, name in (("dense", "dense"), ("sparse", "2:4")):
        text = "not measured (no chat)" if samples[arm] is None else samples[arm] or "(an empty answer)"
        lines += textwrap.wrap(f"{name:>7}: {text}", WIDTH, subsequent_indent=" " * 9)
    return [*lines, ""]


def price_lines(price: Mapping[str, Any] | None, started: str) -> list[str]:
    if not price:
        return []
    hourly = f"${price['usd_per_hour']:g} per hour for {price['name']}"
    return textwrap.wrap(f"Price: {hourly} ({price['source']}{price_dated(price['as_of'], started)}).", WIDTH)


def wrapped(notes: list[str]) -> list[str]:
    return [line for note in notes for line in textwrap.wrap(note, WIDTH)]


def gate_lines(document: Document) -> list[str]:
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
