"""Lines over the seconds of a run. Axes, ticks and colours are those of all our charts."""

from collections.abc import Mapping, Sequence
from html import escape

from markupsafe import Markup

from twofour.prune.label.charts import AXIS, LEFT, PLOT_HEIGHT, RIGHT, TOP, WIDTH, Scale, level, svg, ticks, value_axis

_HEAD = 20  # above the plot, for the unit

Points = Sequence[tuple[float, float]]


def over_time(
    title: str,
    description: str,
    lines: Mapping[str, Points],
    unit: str,
    window: tuple[float, float] | None,
) -> Markup:
    """A line for each class of the style sheet, up from 0; the window that counts is shaded. A line has two points."""
    times = [at for points in lines.values() for at, _ in points]
    across = [step for step in ticks(min(times), max(times)) if step <= max(times)]
    up = ticks(0, max(value for points in lines.values() for _, value in points))
    x, y = Scale(across[0], max(times), LEFT, WIDTH - RIGHT), Scale(0, up[-1], TOP + PLOT_HEIGHT, TOP + _HEAD)
    parts = [_shade(x, window)] if window else []
    parts += [part for step in up for part in level(y.at(step), f"{step:g}")]
    parts += value_axis(x, across, "seconds after the start")
    parts.append(f'<text class="tick" x="0" y="{TOP}">{escape(unit)}</text>')
    for name, points in lines.items():
        places = " L".join(f"{x.at(at)},{y.at(value)}" for at, value in points)
        parts.append(f'<path class="curve {name}" d="M{places}"/>')
    return svg(title, description, TOP + PLOT_HEIGHT + AXIS, parts)


def _shade(x: Scale, window: tuple[float, float]) -> str:
    left, right = (min(max(x.at(end), x.start), x.end) for end in window)
    place = f'x="{left}" y="{TOP + _HEAD}" width="{right - left:.1f}" height="{PLOT_HEIGHT - _HEAD}"'
    return f'<rect class="window" {place}><title>what counts</title></rect>'
