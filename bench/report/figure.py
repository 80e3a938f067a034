"""A chart with the numbers behind it, as the pages show it (figures.html)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from twofour.bench.report import charts, timeline
from twofour.bench.report.timeline import Points, Units

QUANTILES = (5, 25, 50, 75, 90, 95, 99)


@dataclass(frozen=True)
class Figure:
    """A chart and its numbers; `chart` None: nothing was measured. legend: class of the style sheet -> name."""

    title: str
    caption: str
    chart: Markup | None
    columns: Sequence[str] = ()
    cells: Sequence[Sequence[str]] = ()
    legend: Mapping[str, str] = field(default_factory=dict)


def distribution(
    title: str,
    caption: str,
    seconds: Mapping[str, Sequence[float] | NDArray[np.float64]],
    names: Mapping[str, str],
    legend: bool = False,
) -> Figure:
    """The cumulative distribution of each, in milliseconds; `names` are what their classes are called."""
    if not all(map(len, seconds.values())):
        return Figure(title, caption, None)
    values = {name: 1000 * np.asarray(each) for name, each in seconds.items()}
    text = f"{caption} The share of values up to x; the axis ends at the 99th percentile."
    chart = charts.distributions(f"{title}, cumulative", text, values, "milliseconds")
    cells = [[f"p{p}", *(f"{np.percentile(each, p):.2f}" for each in values.values())] for p in QUANTILES]
    cells.append(["values", *(str(len(each)) for each in values.values())])
    columns = ("ms", *(names[name] for name in values))
    return Figure(title, text, chart, columns, cells, dict(names) if legend else {})


def lines(
    title: str,
    caption: str,
    named: Mapping[str, tuple[str, Points]],
    units: Units,
    window: tuple[float, float] | None = None,
    marked: bool = False,
) -> Figure:
    """Lines by the classes of the style sheet, each with its name; a single point is drawn only where it is marked."""
    known = {name: (label, points) for name, (label, points) in named.items() if len(points) > (0 if marked else 1)}
    if not known:
        return Figure(title, caption, None)
    points = {name: each for name, (_, each) in known.items()}
    legend = {name: label for name, (label, _) in known.items()}
    chart = timeline.drawn(title, caption, points, units, window, marked)
    return Figure(title, caption, chart, (units.across, *legend.values()), _cells(list(points.values())), legend)


def _cells(lines: Sequence[Points]) -> list[list[str]]:
    by_time = [dict(points) for points in lines]
    times = sorted({at for points in lines for at, _ in points})
    return [[f"{at:g}", *(f"{known[at]:.4g}" if at in known else "" for known in by_time)] for at in times]
