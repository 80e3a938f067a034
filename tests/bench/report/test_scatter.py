"""Loss against cost: where marks and names go."""

import re
from itertools import combinations

import pytest

from twofour.bench.report import scatter
from twofour.bench.report.scatter import Axis, Box, Place, labels
from twofour.prune.label.charts import PLOT_HEIGHT, TOP, WIDTH

PLACES = [
    *(Place("dense", 1.0, 0.0, "dense"), Place("int8", 0.5, 0.0, "dense"), Place("2:4", 0.6, 0.8, "sparse")),
    *(
        Place("2:4 int8", 0.25, 0.8, "sparse"),
        Place("mixed", 0.4, 0.4, "mixture"),
        Place("4 bit", 0.45, 0.4, "simulated"),
    ),
]


def marks(svg: str) -> list[tuple[str, bool]]:
    return [(kind, bool(hollow)) for kind, hollow in re.findall(r'class="mark (\w+)( hollow)?"', svg)]


def test_the_beaten_are_hollow_and_the_line_goes_along_the_front() -> None:
    svg = scatter.scatter("t", "d", PLACES, Axis("bytes"), "KL")
    looks = marks(svg)[: len(PLACES)]
    hollow = [place.name for place, (_, is_hollow) in zip(PLACES, looks, strict=True) if is_hollow]
    assert hollow == ["dense", "2:4", "4 bit"]
    line = re.search(r'class="front" d="M([\d.]+),([\d.]+) H([\d.]+) V([\d.]+) H([\d.]+) V([\d.]+)"', svg)
    assert line is not None
    x0, y0, x1, y1, x2, y2 = map(float, line.groups())
    assert (x1 - x0) / (x2 - x0) == pytest.approx(0.15 / 0.25, abs=0.01)  # 0.25, 0.4, 0.5
    assert (y1 - y0) / (y2 - y0) == pytest.approx(0.5, abs=0.01)
    assert "bytes, less is better" in svg


def test_where_more_is_better_the_fastest_is_on_the_front() -> None:
    places = [Place("slow", 1.0, 0.0, "dense"), Place("fast", 3.0, 0.5, "sparse"), Place("worse", 2.0, 0.6, "sparse")]
    svg = scatter.scatter("t", "d", places, Axis("tokens/s", rising=True), "KL")
    assert [hollow for _, hollow in marks(svg)[:3]] == [False, False, True] and "tokens/s, more is better" in svg


def test_names_are_beside_their_marks_and_cover_nothing() -> None:
    svg = scatter.scatter("t", "d", [*PLACES, Place("a<b", 0.41, 0.41, "mixture")], Axis("bytes"), "KL")
    assert "a&lt;b" in svg
    at = {f"0.{n}": (100.0 + 14 * n, 60.0 + 9 * n) for n in range(12)} | {"the last on the right": (470.0, 200.0)}
    named = labels(at)
    for one, other in combinations(named, 2):
        assert one.box.shared(other.box) == 0
    for label in named:
        x, y = at[label.name]
        assert abs(label.x - x) < 40 and abs(label.y - y) < 40
        assert label.box.left >= 0 and label.box.right <= WIDTH and label.box.bottom <= TOP + PLOT_HEIGHT
        assert not any(label.box.shared(Box(x - 5, y - 5, x + 5, y + 5)) for x, y in at.values())


def test_the_legend_has_the_kinds_that_are_there() -> None:
    svg = scatter.scatter("t", "d", PLACES[:3], Axis("bytes"), "KL")
    assert "2:4 and dense, mixed" not in svg and "simulated" not in svg and ">dense<" in svg and ">2:4<" in svg
