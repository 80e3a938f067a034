"""The arms of a comparison under other loads, as text."""

from collections.abc import Iterator

from twofour.bench.report.rows import Document, Ratio, dollars
from twofour.bench.sweep.table import body


def lines(document: Document) -> Iterator[str]:
    """Nothing where the comparison had its own load only."""
    for view in document.get("views") or ():
        yield "Under other loads; ratios are to the first, with a 95 % interval over the rounds"
        yield from (f"  {line}" for line in body(view))
        yield from map(_cost, view["costs"])
        yield ""


def _cost(figure: Document) -> str:
    found = figure["ratio"] or {}
    ratio = Ratio(found.get("point"), found.get("low"), found.get("high"), figure["verdict"])
    price = "" if figure["blended"] is None else f" {dollars(figure['blended'])}"
    return f"  a million tokens, {figure['place']}, {figure['server']}:{price}  {ratio} {ratio.word}".rstrip()
