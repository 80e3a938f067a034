"""The report of several arms as one HTML file: loss against each cost, then all figures."""

from typing import NamedTuple

from markupsafe import Markup

from twofour.bench.load.gates import quantity
from twofour.bench.report import offers, rows, views
from twofour.bench.report.rows import UNKNOWN, Document, Ratio, ratio_of
from twofour.prune.label.pages import rendered


class Line(NamedTuple):
    """One figure of one arm, as text."""

    arm: str
    value: str
    ratio: Ratio


class Shown(NamedTuple):
    """A picture, drawn; None: fewer than two arms are in it."""

    title: str
    chart: Markup | None
    columns: tuple[str, str, str]
    cells: list[tuple[str, str, str, bool]]


def page(document: Document) -> str:
    return rendered(
        "twofour.bench.report",
        "several.html",
        {"quantity": quantity, "kernels": rows.kernels_text},
        document=document,
        first=next(iter(document["arms"])),
        arms={name: name for name in document["arms"]},
        pictures=[_shown(document, picture) for picture in offers.pictures(document).values()],
        losses=_losses(document),
        views=list(views.lines(document)),
        groups=_groups(document),
        price_dated=rows.price_dated(document["price"]["as_of"], document["started"]) if document["price"] else "",
        unknown=UNKNOWN,
    )


def _shown(document: Document, picture: offers.Picture) -> Shown:
    chart = picture.draw(offers.about(document)) if len(picture.places) > 1 else None
    best = picture.front
    cells = [(each.name, f"{each.x:,.4g}", f"{each.loss:.3f}", each.name in best) for each in picture.places]
    return Shown(picture.title, chart, ("arm", picture.axis.unit, picture.loss), cells)


def _losses(document: Document) -> list[tuple[str, ...]]:
    """Perplexity, over the first's, KL and agreement of each arm."""
    return [
        (
            name,
            rows.plain(loss and loss["perplexity"]),
            rows.times(loss and loss["perplexity_ratio"]) or UNKNOWN,
            UNKNOWN if not loss or loss["kl"] is None else f"{loss['kl']:.4f}",
            rows.percent(loss and loss["agreement"]),
        )
        for name, loss in document["quality"].items()
    ]


def _groups(document: Document) -> list[tuple[str, list[Line]]]:
    held, cost = document["bytes"], document["cost"] or {}
    shown = rows.speed_shown(document)
    groups = {label: (document["metrics"][metric]["arms"], form) for metric, (label, form) in shown.items()}
    groups |= {
        "weights, resident": (held["weight_bytes"], rows.megabytes),
        "of it in the linears": (held["linear_bytes"], rows.megabytes),
    }
    named = {"blended": "$ per million tokens", "output_only": "$ per million output tokens"}
    named |= {"good_requests": "$ per 1,000 good requests"}
    groups |= {label: (cost[kind], rows.dollars) for kind, label in named.items() if kind in cost}
    return [
        (label, [Line(arm, form(figure["value"]), ratio_of(figure)) for arm, figure in figures.items()])
        for label, (figures, form) in groups.items()
    ]
