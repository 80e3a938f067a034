"""Offers by cost and loss: a mark for each, hollow where another one beats it, and a line along the front.

Kinds differ in shape as well as in colour. Every mark has its name beside it, where it covers no other name or mark.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import NamedTuple

from markupsafe import Markup

from twofour.bench.pareto import Offer, front
from twofour.prune.label.charts import AXIS, LEFT, PLOT_HEIGHT, RIGHT, TOP, WIDTH, Scale, level, svg, ticks, value_axis

KINDS = {"dense": "dense", "sparse": "2:4", "mixture": "2:4 and dense, mixed", "simulated": "simulated, no kernel"}
_SIZE = 5.5  # half the width of a mark
_LETTER, _LINE = 7.3, 15  # the size of a letter where the style sheet writes large, on a phone
_LEGEND_ROW = 20
_HEAD = 20  # above the plot, for the unit


@dataclass(frozen=True)
class Place:
    """One offer. kind: one of KINDS."""

    name: str
    x: float
    loss: float
    kind: str


class Axis(NamedTuple):
    """What is written at an axis. rising: more is better."""

    unit: str
    rising: bool = False


class Box(NamedTuple):
    left: float
    top: float
    right: float
    bottom: float

    def shared(self, other: "Box") -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(0.0, width) * max(0.0, height)


class Label(NamedTuple):
    name: str
    x: float
    y: float
    anchor: str

    @property
    def box(self) -> Box:
        width = _LETTER * len(self.name)
        left = {"start": self.x, "end": self.x - width, "middle": self.x - width / 2}[self.anchor]
        return Box(left, self.y - _LINE + 3, left + width, self.y + 3)


def on_front(places: Sequence[Place], axis: Axis) -> list[str]:
    """The names of those that no other beats, the cheapest first."""
    sign = -1 if axis.rising else 1
    return front({place.name: Offer(sign * place.x, place.loss) for place in places})


def scatter(title: str, description: str, places: Sequence[Place], axis: Axis, loss: str) -> Markup:
    """Loss upwards from 0, cost to the right."""
    across = ticks(min(place.x for place in places), max(place.x for place in places))
    up = ticks(0, max(place.loss for place in places))
    x, y = Scale(across[0], across[-1], LEFT, WIDTH - RIGHT), Scale(up[0], up[-1], TOP + PLOT_HEIGHT, TOP + _HEAD)
    best = on_front(places, axis)
    at = {place.name: (x.at(place.x), y.at(place.loss)) for place in places}
    parts = [part for step in up for part in level(y.at(step), f"{step:g}")]
    parts += value_axis(x, across, f"{axis.unit}, {'more' if axis.rising else 'less'} is better")
    parts.append(f'<text class="tick" x="{LEFT}" y="{TOP}">{escape(loss)}</text>')
    parts.append(f'<path class="front" d="{_stairs([at[name] for name in best])}"/>')
    parts += [_mark(*at[place.name], place.kind, place.name in best) for place in places]
    parts += [_text(label) for label in labels(at)]
    bottom = TOP + PLOT_HEIGHT + AXIS + 12
    kinds = [kind for kind in KINDS if any(place.kind == kind for place in places)]
    parts += _legend(kinds, bottom)
    return svg(title, description, bottom + _LEGEND_ROW * (len(kinds) + 1) - 6, parts)


def _stairs(front: Sequence[tuple[float, float]]) -> str:
    """From one to the next: what lies above is beaten."""
    (x, y), *rest = front
    return f"M{x},{y}" + "".join(f" H{to_x} V{to_y}" for to_x, to_y in rest)


def _mark(x: float, y: float, kind: str, best: bool) -> str:
    look, s = f'class="mark {kind}{"" if best else " hollow"}"', _SIZE
    if kind == "sparse":
        return f'<circle {look} cx="{x}" cy="{y}" r="{s}"/>'
    corners = {
        "dense": ((-s, -s), (s, -s), (s, s), (-s, s)),
        "mixture": ((-s - 1, s), (0, -s - 2), (s + 1, s)),
        "simulated": ((-s - 2, 0), (0, -s - 2), (s + 2, 0), (0, s + 2)),
    }[kind]
    return f'<path {look} d="M{" L".join(f"{x + dx:g},{y + dy:g}" for dx, dy in corners)} Z"/>'


def _legend(kinds: Sequence[str], top: float) -> Iterator[str]:
    for row, kind in enumerate(kinds):
        y = top + row * _LEGEND_ROW
        yield _mark(LEFT + 6, y, kind, True)
        yield f'<text class="tick" x="{LEFT + 20}" y="{y + 4}">{KINDS[kind]}</text>'
    y = top + len(kinds) * _LEGEND_ROW
    yield _mark(LEFT + 6, y, kinds[0], False)
    yield f'<text class="tick" x="{LEFT + 20}" y="{y + 4}">hollow: another costs no more and loses no more</text>'


def _text(label: Label) -> str:
    place = f'x="{label.x:g}" y="{label.y:g}" text-anchor="{label.anchor}"'
    return f'<text class="tick named" {place}>{escape(label.name)}</text>'


def labels(at: Mapping[str, tuple[float, float]]) -> list[Label]:
    """A name beside each mark: where it covers nothing, or else where it covers least."""
    taken = [Box(x - _SIZE - 2, y - _SIZE - 2, x + _SIZE + 2, y + _SIZE + 2) for x, y in at.values()]
    found = list[Label]()
    for name, (x, y) in at.items():
        found.append(min(_beside(name, x, y), key=lambda label: _covered(label.box, taken)))
        taken.append(found[-1].box)
    return found


def _beside(name: str, x: float, y: float) -> Iterator[Label]:
    """The places for a name, the best first."""
    for aside, down in ((11, 4), (9, -9), (9, 18)):
        yield Label(name, x + aside, y + down, "start")
        yield Label(name, x - aside, y + down, "end")
    for down in (-12, 21, -26, 35):
        yield Label(name, x, y + down, "middle")


def _covered(box: Box, taken: Iterable[Box]) -> float:
    """How much of it covers others, or lies outside of the chart, which is worse."""
    outside = max(0, -box.left) + max(0, box.right - WIDTH) + max(0, box.bottom - TOP - PLOT_HEIGHT)
    return sum(box.shared(other) for other in taken) + 1e3 * outside
