"""The charts of a comparison: distributions, bars, ratios. Axes, ticks and colours are those of all our charts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import log10

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from twofour.prune.label.charts import AXIS, LEFT, PLOT_HEIGHT, RIGHT, TOP, WIDTH, Scale, level, svg, ticks, value_axis

Values = Sequence[float] | NDArray[np.float64]

_CURVE_POINTS = 160
_SHOWN = 99  # percentile at which the axis of a distribution ends: a stall would flatten all else
_BAR, _BAR_GAP, _GROUP_GAP = 20, 5, 34
_ROW = 34


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


def distributions(title: str, description: str, arms: Mapping[str, Values], unit: str) -> Markup:
    """A cumulative distribution by arm: how high a curve stands at x is the share of values up to x."""
    shown = np.percentile(np.concatenate([np.asarray(values) for values in arms.values()]), [0, _SHOWN])
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


def _curve(values: Values, x: Scale, y: Scale) -> str:
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
