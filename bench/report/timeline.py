"""Lines through points, over the seconds of a run or over what else was varied. As all our charts look."""

from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from markupsafe import Markup

from twofour.prune.label.charts import AXIS, LEFT, PLOT_HEIGHT, RIGHT, TOP, WIDTH, Scale, level, svg, ticks, value_axis

_HEAD = 20  # above the plot, for the unit

Points = Sequence[tuple[float, float]]


class Units(NamedTuple):
    across: str
    up: str


def drawn(
    title: str,
    description: str,
    lines: Mapping[str, Points],
    units: Units,
    window: tuple[float, float] | None = None,
    marked: bool = False,
) -> Markup:
    """A line for each class of the style sheet, up from 0. window: is shaded. marked: a dot at each point."""
    places = [at for points in lines.values() for at, _ in points]
    across = [step for step in ticks(min(places), max(places)) if step <= max(places)]
    up = ticks(0, max(value for points in lines.values() for _, value in points))
    left, right = (across[0], max(places)) if max(places) > across[0] else (across[0], across[0] + 1)
    x, y = Scale(left, right, LEFT, WIDTH - RIGHT), Scale(0, up[-1], TOP + PLOT_HEIGHT, TOP + _HEAD)
    parts = [_shade(x, window)] if window else []
    parts += [part for step in up for part in level(y.at(step), f"{step:g}")]
    parts += value_axis(x, across, units.across)
    parts.append(f'<text class="tick" x="0" y="{TOP}">{escape(units.up)}</text>')
    for name, points in lines.items():
        ends = [f"{x.at(at)},{y.at(value)}" for at, value in points]
        parts.append(f'<path class="curve {name}" d="M{" L".join(ends)}"/>')
        dots = [(x.at(at), y.at(value)) for at, value in points] if marked else []
        parts += [f'<circle class="point {name}" cx="{at}" cy="{high}" r="4"/>' for at, high in dots]
    return svg(title, description, TOP + PLOT_HEIGHT + AXIS, parts)


def _shade(x: Scale, window: tuple[float, float]) -> str:
    left, right = (min(max(x.at(end), x.start), x.end) for end in window)
    place = f'x="{left}" y="{TOP + _HEAD}" width="{right - left:.1f}" height="{PLOT_HEIGHT - _HEAD}"'
    return f'<rect class="window" {place}><title>what counts</title></rect>'
