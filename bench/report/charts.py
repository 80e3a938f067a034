"""The charts of a comparison, in the house's way: see `twofour.prune.label.charts`."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import cycle
from math import log10
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from twofour.prune.label.charts import AXIS, LEFT, PLOT_HEIGHT, RIGHT, TOP, WIDTH, Scale, level, svg, ticks, value_axis

_CURVE_POINTS = 160
_SHOWN = 99  # percentile at which the axis of a distribution ends: a stall would flatten all else
_BAR, _BAR_GAP, _GROUP_GAP = 20, 5, 34
_ROW = 34
_LINES = ("sparse", "dense", "torch_dense", "fourth", "fifth", "sixth")  # the looks of lines in turn
_LEGEND_ROW = 18  # a name of any length on each


@dataclass(frozen=True)
class Bar:
    """A quantity by arm, with what is written at the bars. None: not measured."""

    name: str
    values: Mapping[str, float | None]
    labels: Mapping[str, str]


@dataclass(frozen=True)
class Estimate:
    """A ratio with its interval. `verdict` is a class of the style sheet: better, worse, same, unclear."""

    name: str
    point: float
    low: float | None
    high: float | None
    verdict: str
    label: str


class Point(NamedTuple):
    """A named place in two dimensions."""

    x: float
    y: float
    name: str


def distributions(title: str, description: str, arms: Mapping[str, Sequence[float]], unit: str) -> Markup:
    """A cumulative distribution by arm: how high a curve stands at x is the share of values up to x."""
    shown = np.percentile([value for values in arms.values() for value in values], [0, _SHOWN])
    steps = ticks(float(shown[0]), float(shown[1]))
    x = Scale(steps[0], steps[-1], LEFT, WIDTH - RIGHT)
    y = Scale(0, 1, TOP + PLOT_HEIGHT, TOP)
    parts = [*_share_axis(y), *value_axis(x, steps, unit)]
    for arm, values in arms.items():
        parts.append(f'<path class="curve {arm}" d="{_curve(values, x, y)}"/>')
    return svg(title, description, TOP + PLOT_HEIGHT + AXIS, parts)


def bars(title: str, description: str, groups: Sequence[Bar]) -> Markup:
    """Groups of horizontal bars, one bar an arm, each group to a scale of its own that starts at 0."""
    parts, y = list[str](), 6.0
    for group in groups:
        scale = Scale(0, max(value or 0 for value in group.values.values()) or 1, 0, WIDTH - 130)
        parts.append(f'<text class="name" x="0" y="{y + 14:g}">{escape(group.name)}</text>')
        y += 22
        for arm, value in group.values.items():
            length = scale.at(value or 0)
            parts.append(f'<rect class="bar {arm}" x="0" y="{y:g}" width="{length:g}" height="{_BAR}" rx="2"/>')
            parts.append(f'<text class="value" x="{length + 8:g}" y="{y + 15:g}">{escape(group.labels[arm])}</text>')
            y += _BAR + _BAR_GAP
        y += _GROUP_GAP - 22
    return svg(title, description, y, parts)


def ratios(title: str, description: str, estimates: Sequence[Estimate]) -> Markup:
    """Ratios to dense with their intervals, on a logarithmic axis around 1."""
    ends = [value for each in estimates for value in (each.point, each.low, each.high) if value]
    reach = max(0.05, *(abs(log10(value)) for value in ends)) * 1.1
    x, bottom = Scale(-reach, reach, 170, WIDTH - 80), TOP + _ROW * len(estimates)
    parts = [f'<line class="one" x1="{x.at(0)}" x2="{x.at(0)}" y1="{TOP}" y2="{bottom}"/>']
    for row, each in enumerate(estimates):
        parts += _estimate(each, x, TOP + _ROW * row + _ROW / 2)
    for value in _round_ratios(reach):
        at = x.at(log10(value))
        parts.append(f'<text class="tick" x="{at}" y="{bottom + 18}" text-anchor="middle">{value:g}x</text>')
    return svg(title, description, bottom + 26, parts)


def track(title: str, description: str, lines: Mapping[str, Sequence[Point]], units: tuple[str, str]) -> Markup:
    """Named points joined to lines; both axes reach down to 0 or below."""
    points = [point for line in lines.values() for point in line]
    steps = [ticks(min(0, *values), max(values)) for values in ([p.x for p in points], [p.y for p in points])]
    x = Scale(steps[0][0], steps[0][-1], LEFT, WIDTH - RIGHT)
    y = Scale(steps[1][0], steps[1][-1], TOP + PLOT_HEIGHT, TOP)
    parts = [part for step in steps[1] for part in level(y.at(step), f"{step:g}")]
    parts += value_axis(x, steps[0], units[0])
    parts.append(f'<text class="tick" x="{LEFT}" y="{TOP - 2}">{escape(units[1])}</text>')
    bottom = TOP + PLOT_HEIGHT + AXIS
    for number, ((name, line), style) in enumerate(zip(lines.items(), cycle(_LINES), strict=False)):
        row = bottom + 8 + number * _LEGEND_ROW
        parts += _line(line, style, x, y)
        parts.append(f'<path class="curve {style}" d="M{LEFT},{row} L{LEFT + 26},{row}"/>')
        parts.append(f'<text x="{LEFT + 32}" y="{row + 4}">{escape(name)}</text>')
    return svg(title, description, bottom + _LEGEND_ROW * len(lines) + 2, [*parts, *_names(points, x, y)])


def _line(line: Sequence[Point], style: str, x: Scale, y: Scale) -> list[str]:
    places = " L".join(f"{x.at(point.x)},{y.at(point.y)}" for point in line)
    circles = [f'<circle class="point {style}" cx="{x.at(point.x)}" cy="{y.at(point.y)}" r="4"/>' for point in line]
    return [f'<path class="curve {style}" d="M{places}"/>', *circles]


def _names(points: Sequence[Point], x: Scale, y: Scale) -> Iterator[str]:
    """The names beside points, but not the same twice in one place."""
    named: list[Point] = []
    for point in points:
        if not any(_side_by_side(point, other, x, y) for other in named):
            named.append(point)
            aside, anchor = (-7, "end") if point.x > 0.9 * x.high else (7, "start")  # the right end has no room
            place = f'x="{x.at(point.x) + aside:g}" y="{y.at(point.y) + 14:g}" text-anchor="{anchor}"'
            yield f'<text class="tick" {place}>{escape(point.name)}</text>'


def _side_by_side(one: Point, other: Point, x: Scale, y: Scale) -> bool:
    """Whether the same name would be written twice in one place."""
    return one.name == other.name and abs(x.at(one.x) - x.at(other.x)) < 40 and abs(y.at(one.y) - y.at(other.y)) < 14


def _curve(values: Sequence[float], x: Scale, y: Scale) -> str:
    """A line through evenly spaced shares, cut where the axis ends."""
    shares = np.linspace(0, 1, min(len(values), _CURVE_POINTS))
    points = [
        f"{x.at(float(value))},{y.at(float(share))}"
        for value, share in zip(np.quantile(values, shares), shares, strict=True)
        if value <= x.high
    ]
    return "M" + " L".join(points)


def _share_axis(y: Scale) -> list[str]:
    return [part for share in (0, 0.25, 0.5, 0.75, 1) for part in level(y.at(share), f"{share * 100:g} %")]


def _estimate(each: Estimate, x: Scale, y: float) -> list[str]:
    at = x.at(log10(each.point))
    parts = [f'<text class="name" x="0" y="{y + 5:g}">{escape(each.name)}</text>']
    if each.low and each.high:
        low, high = x.at(log10(each.low)), x.at(log10(each.high))
        parts.append(f'<line class="range {each.verdict}" x1="{low}" x2="{high}" y1="{y:g}" y2="{y:g}"/>')
    parts.append(f'<circle class="point {each.verdict}" cx="{at}" cy="{y:g}" r="5"/>')
    parts.append(f'<text class="value" x="{WIDTH}" y="{y + 5:g}" text-anchor="end">{escape(each.label)}</text>')
    return parts


def _round_ratios(reach: float) -> list[float]:
    """What to write at the axis: 1 and one round ratio on either side."""
    candidates = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1, 1.05, 1.1, 1.25, 1.5, 2, 4, 10)
    inside = [value for value in candidates if abs(log10(value)) <= reach]
    return sorted({min(inside), 1, max(inside)})
