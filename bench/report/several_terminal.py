"""Several arms as text: what each loses and costs, with the front marked; each figure; answers; whether to quote it."""

import textwrap
from collections.abc import Iterator
from typing import Any

from twofour.bench.report import offers, rows, views
from twofour.bench.report.rows import UNKNOWN, Document, ratio_of
from twofour.bench.report.terminal import WIDTH, gate_lines, price_lines, wrapped

ON_FRONT = "*"


def table(document: Document) -> str:
    lines = [
        *_arms(document),
        f"load:  {document['load']['summary']}",
        f"on:    {document['hardware']['summary']}",
        "",
        *offers_table(document),
        "",
        *_figures(document),
        "",
        *views.lines(document),
        *_answers(document),
        *wrapped(document["advice"]),
        *price_lines(document["price"], document["started"]),
        *wrapped(document["notes"]),
        *gate_lines(document),
    ]
    return "\n".join(lines)


def _arms(document: Document) -> Iterator[str]:
    width = max(map(len, document["arms"]))
    for number, (name, arm) in enumerate(document["arms"].items()):
        flags = f" {' '.join(arm['flags'])}" if arm["flags"] else ""
        ran = f": {rows.kernels_text(arm['kernels'])}" if arm["kernels"] else ""
        yield f"{'' if number else 'arms:':6} {name:{width}}  {arm['given']}{flags}{ran}"


def offers_table(document: Document) -> Iterator[str]:
    """A row for each arm: what it loses, and what it costs in three ways."""
    first, width = next(iter(document["arms"])), max(map(len, document["arms"]))
    fronts = document["fronts"]
    yield from wrapped(
        [
            f"Quality against cost. Ratios are to {first}, with 95 % intervals; {ON_FRONT}: no other arm is "
            "at least as good in this cost and in quality, and better in one of them (the front)"
        ]
    )
    heads = f"  {'':{width}}{'KL':>7}{'ppl':>8}{'MB of linears':>18}   {'output tokens/s':>30}   {'$ per M tokens':>17}"
    yield heads
    for name in document["arms"]:
        marks = {cost: ON_FRONT if name in fronts[cost] else " " for cost in offers.COSTS}
        cells = f"{_bytes(document, name)} {marks['bytes']} {_speed(document, name)} {marks['speed']} "
        yield f"  {name:{width}}{_loss(document, name)}{cells}{_dollars(document, name)} {marks['dollars']}".rstrip()


def _loss(document: Document, name: str) -> str:
    loss = document["quality"][name]
    if not loss:
        return f"{'-':>7}{'-':>8}"
    kl = "-" if loss["kl"] is None else f"{loss['kl']:.3f}" if loss["kl"] else "0"
    return f"{kl:>7}{'-' if loss['perplexity_ratio'] is None else format(loss['perplexity_ratio'], '.2f') + 'x':>8}"


def _bytes(document: Document, name: str) -> str:
    held = document["bytes"]["linear_bytes"][name]
    size = "-" if held["value"] is None else f"{held['value'] / 1e6:,.1f}"
    return f"{size:>10}{rows.times(held['ratio']):>8}"


def _speed(document: Document, name: str) -> str:
    figure = document["metrics"]["output_tokens_per_s"]["arms"][name]
    value = "-" if figure["value"] is None else rows.plain(figure["value"])
    return f"{value:>8}  {ratio_of(figure)!s:>22}"


def _dollars(document: Document, name: str) -> str:
    figure = (document["cost"] or {}).get("blended", {}).get(name)
    if not figure:
        return f"{'-':>9}{'':8}"
    value = "-" if figure["value"] is None else rows.dollars(figure["value"])
    return f"{value:>9}{ratio_of(figure).times:>8}"


def _figures(document: Document) -> Iterator[str]:
    """A block for each figure. Verdicts are corrected for how many are looked at."""
    first, width = next(iter(document["arms"])), max(map(len, document["arms"]))
    yield f"{'Speed':36}{'':>14}{'over ' + first:>14}  {'95 % interval':16} is"
    for metric, (label, form) in rows.speed_shown(document).items():
        for number, (name, figure) in enumerate(document["metrics"][metric]["arms"].items()):
            ratio = ratio_of(figure)
            head = f"  {'' if number else label:34}{name:{width}}"
            yield f"{head}{form(figure['value']):>14}{ratio.times:>9}  {ratio.interval:16} {ratio.word}".rstrip()


def _answers(document: Document) -> Iterator[str]:
    width = max(map(len, document["arms"]))
    yield f"All were asked: {document['question']}"
    for name, arm in document["arms"].items():
        said: Any = f"{UNKNOWN} (no chat)" if arm["answer"] is None else arm["answer"] or "(an empty answer)"
        yield from textwrap.wrap(f"{name:>{width}}: {said}", WIDTH, subsequent_indent=" " * (width + 2))
    yield ""
