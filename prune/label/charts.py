"""Charts as inline SVG: no script, no network, colours from the style sheet of the page, page.css.

Every chart has a title and a description for those who do not see it; the page has the same numbers in a table below.
Curves differ not only in colour but also in dashes, bars also in their order.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from math import ceil, floor, log10

from markupsafe import Markup

WIDTH = 480
LEFT, RIGHT, TOP = 44, 14, 12
PLOT_HEIGHT = 190
AXIS = 42
_NAMES = 84  # the width of names left of a chart
_CELL = 22
_FAINTEST = 0.06  # the opacity of a cell of value 0


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


def style() -> Markup:
    """The style sheet of all pages."""
    return Markup(files("twofour.prune.label").joinpath("page.css").read_text(encoding="utf-8").rstrip())


def curves(title: str, description: str, lines: Mapping[str, Sequence[float]], unit: str) -> Markup:
    """Values by position, one line for each class of the style sheet; the axis of values starts at 0."""
    steps = ticks(0, max(max(values) for values in lines.values()))
    count = max(len(values) for values in lines.values())
    x = Scale(0, max(count - 1, 1), LEFT, WIDTH - RIGHT)
    y = Scale(0, steps[-1], TOP + PLOT_HEIGHT, TOP)
    parts = [part for step in steps for part in level(y.at(step), f"{step:g}")]
    parts += value_axis(x, _positions(count), unit)
    for name, values in lines.items():
        places = " L".join(f"{x.at(at)},{y.at(value)}" for at, value in enumerate(values))
        parts.append(f'<path class="curve {name}" d="M{places}"/>')
    return svg(title, description, TOP + PLOT_HEIGHT + AXIS, parts)


def cells(title: str, description: str, rows: Mapping[str, Sequence[float | None]], unit: str) -> Markup:
    """A row of cells for each name, stronger in colour the greater the value; None leaves a hole."""
    count = max(len(values) for values in rows.values())
    greatest = max(value for values in rows.values() for value in values if value is not None) or 1.0
    x, bottom = Scale(0, count, _NAMES, WIDTH), TOP + len(rows) * _CELL
    parts = list[str]()
    for y, (name, values) in zip(range(TOP, bottom, _CELL), rows.items(), strict=True):
        parts.append(f'<text class="name" x="0" y="{y + 15}">{escape(name)}</text>')
        parts += [_cell(x, at, y, value, greatest) for at, value in enumerate(values) if value is not None]
    for at in _positions(count):
        parts.append(f'<text class="tick" x="{x.at(at + 0.5)}" y="{bottom + 18}" text-anchor="middle">{at}</text>')
    parts.append(f'<text class="tick" x="{WIDTH}" y="{bottom + 36}" text-anchor="end">{escape(unit)}</text>')
    return svg(title, description, bottom + AXIS, parts)


def _cell(x: Scale, at: int, y: int, value: float, greatest: float) -> str:
    shade = _FAINTEST + (1 - _FAINTEST) * value / greatest
    place = f'x="{x.at(at)}" y="{y}" width="{x.at(at + 1) - x.at(at):.1f}" height="{_CELL}"'
    return f'<rect class="cell" {place} fill-opacity="{shade:.3f}"><title>{at}: {value:.4f}</title></rect>'


def _positions(count: int) -> list[int]:
    """About five of the positions from 0 on."""
    return [int(at) for at in ticks(0, max(count - 1, 1)) if at.is_integer() and at < count]


def level(y: float, label: str) -> list[str]:
    """A line of the grid across the plot, and its label."""
    return [
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>',
        f'<text class="tick" x="{LEFT - 8}" y="{y + 4:g}" text-anchor="end">{label}</text>',
    ]


def value_axis(x: Scale, steps: Sequence[float], unit: str) -> list[str]:
    bottom = TOP + PLOT_HEIGHT
    parts = [
        f'<text class="tick" x="{x.at(step)}" y="{bottom + 18}" text-anchor="middle">{step:g}</text>' for step in steps
    ]
    parts.append(f'<text class="tick" x="{x.end}" y="{bottom + 36}" text-anchor="end">{escape(unit)}</text>')
    return parts


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers that reach from at most `low` to at least `high`."""
    span = (high - low) or abs(high) or 1.0
    power = 10.0 ** floor(log10(span / 4))
    step = next(power * digit for digit in (1, 2, 2.5, 5, 10) if power * digit >= span / 4)
    first, last = floor(low / step + 1e-9), ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def alone(chart: Markup) -> str:
    """Make a chart a file of its own, with its style and a background."""
    font = "svg { font-family: system-ui, sans-serif; }"
    ground = f'<style>{style()}\n{font}</style><rect width="100%" height="100%" fill="var(--card)"/>'
    opening, rest = chart.split(">", 1)
    return f'{opening} xmlns="http://www.w3.org/2000/svg">{ground}{rest}\n'


def svg(title: str, description: str, height: float, parts: Sequence[str]) -> Markup:
    # escape() guards every text above; the rest are numbers and class names of this module.
    return Markup(
        f'<svg viewBox="0 0 {WIDTH} {ceil(height)}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title><desc>{escape(description)}</desc>{''.join(parts)}</svg>"
    )
