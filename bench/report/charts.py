"""The charts of the page, as inline SVG: no script, no network, colours from the page's own style sheet.

Every chart has a title and a description for those who do not see it; the page puts the same numbers in a
table beneath. Curves differ in dashes and bars in their order too, not in colour alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, log10

import numpy as np
from markupsafe import Markup

_WIDTH = 480
_LEFT, _RIGHT, _TOP = 44, 14, 12
_PLOT_HEIGHT = 190
_AXIS = 42
_CURVE_POINTS = 160
_SHOWN = 99  # percentile at which the axis of a distribution ends: a stall would flatten all else
_BAR, _BAR_GAP, _GROUP_GAP = 20, 5, 34
_ROW = 34


@dataclass(frozen=True)
class Scale:
    """From values to places on the page."""

    low: float
    high: float
    start: float
    end: float

    def at(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.start + share * (self.end - self.start), 1)


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


def distributions(title: str, description: str, arms: Mapping[str, Sequence[float]], unit: str) -> Markup:
    """A cumulative distribution by arm: how high a curve stands at x is the share of values up to x."""
    shown = np.percentile([value for values in arms.values() for value in values], [0, _SHOWN])
    steps = ticks(float(shown[0]), float(shown[1]))
    x = Scale(steps[0], steps[-1], _LEFT, _WIDTH - _RIGHT)
    y = Scale(0, 1, _TOP + _PLOT_HEIGHT, _TOP)
    parts = [*_share_axis(y), *_value_axis(x, steps, unit)]
    for arm, values in arms.items():
        parts.append(f'<path class="curve {arm}" d="{_curve(values, x, y)}"/>')
    return _svg(title, description, _TOP + _PLOT_HEIGHT + _AXIS, parts)


def bars(title: str, description: str, groups: Sequence[Bar]) -> Markup:
    """Groups of horizontal bars, one bar an arm, each group to a scale of its own that starts at 0."""
    parts, y = list[str](), 6.0
    for group in groups:
        scale = Scale(0, max(value or 0 for value in group.values.values()) or 1, 0, _WIDTH - 130)
        parts.append(f'<text class="name" x="0" y="{y + 14:g}">{escape(group.name)}</text>')
        y += 22
        for arm, value in group.values.items():
            length = scale.at(value or 0)
            parts.append(f'<rect class="bar {arm}" x="0" y="{y:g}" width="{length:g}" height="{_BAR}" rx="2"/>')
            parts.append(f'<text class="value" x="{length + 8:g}" y="{y + 15:g}">{escape(group.labels[arm])}</text>')
            y += _BAR + _BAR_GAP
        y += _GROUP_GAP - 22
    return _svg(title, description, y, parts)


def ratios(title: str, description: str, estimates: Sequence[Estimate]) -> Markup:
    """Ratios to dense with their intervals, on a logarithmic axis around 1."""
    ends = [value for each in estimates for value in (each.point, each.low, each.high) if value]
    reach = max(0.05, *(abs(log10(value)) for value in ends)) * 1.1
    x, bottom = Scale(-reach, reach, 170, _WIDTH - 80), _TOP + _ROW * len(estimates)
    parts = [f'<line class="one" x1="{x.at(0)}" x2="{x.at(0)}" y1="{_TOP}" y2="{bottom}"/>']
    for row, each in enumerate(estimates):
        parts += _estimate(each, x, _TOP + _ROW * row + _ROW / 2)
    for value in _round_ratios(reach):
        at = x.at(log10(value))
        parts.append(f'<text class="tick" x="{at}" y="{bottom + 18}" text-anchor="middle">{value:g}x</text>')
    return _svg(title, description, bottom + 26, parts)


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers that reach from at most `low` to at least `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** floor(log10(span / 4))
    step = next(power * digit for digit in (1, 2, 2.5, 5, 10) if power * digit >= span / 4)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


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
    parts = []
    for share in (0, 0.25, 0.5, 0.75, 1):
        at = y.at(share)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{at}" y2="{at}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{at + 4:g}" text-anchor="end">{share * 100:g} %</text>')
    return parts


def _value_axis(x: Scale, steps: Sequence[float], unit: str) -> list[str]:
    bottom = _TOP + _PLOT_HEIGHT
    parts = [
        f'<text class="tick" x="{x.at(step)}" y="{bottom + 18}" text-anchor="middle">{step:g}</text>' for step in steps
    ]
    parts.append(f'<text class="tick" x="{x.end}" y="{bottom + 36}" text-anchor="end">{escape(unit)}</text>')
    return parts


def _estimate(each: Estimate, x: Scale, y: float) -> list[str]:
    at = x.at(log10(each.point))
    parts = [f'<text class="name" x="0" y="{y + 5:g}">{escape(each.name)}</text>']
    if each.low and each.high:
        low, high = x.at(log10(each.low)), x.at(log10(each.high))
        parts.append(f'<line class="range {each.verdict}" x1="{low}" x2="{high}" y1="{y:g}" y2="{y:g}"/>')
    parts.append(f'<circle class="point {each.verdict}" cx="{at}" cy="{y:g}" r="5"/>')
    parts.append(f'<text class="value" x="{_WIDTH}" y="{y + 5:g}" text-anchor="end">{escape(each.label)}</text>')
    return parts


def _round_ratios(reach: float) -> list[float]:
    """What to write at the axis: 1 and one round ratio on either side."""
    candidates = (0.1, 0.25, 0.5, 0.75, 0.9, 0.95, 1, 1.05, 1.1, 1.25, 1.5, 2, 4, 10)
    inside = [value for value in candidates if abs(log10(value)) <= reach]
    return sorted({min(inside), 1, max(inside)})


def _svg(title: str, description: str, height: float, parts: Sequence[str]) -> Markup:
    # escape() guards every text above; the rest are numbers and class names of this module.
    return Markup(
        f'<svg viewBox="0 0 {_WIDTH} {ceil(height)}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(parts)}</svg>"
    )
