"""Lines through points: where they go, what is shaded, what is marked."""

import re

import pytest

from twofour.bench.report.figure import lines
from twofour.bench.report.timeline import Units, drawn
from twofour.prune.label.charts import LEFT, PLOT_HEIGHT, RIGHT, TOP, WIDTH

UNITS = Units("s", "tokens/s")


def points(svg: str, name: str) -> list[tuple[float, float]]:
    curve = re.search(rf'curve {name}" d="M([^"]+)"', svg)
    assert curve is not None
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in curve[1].split(" L"))]


def test_a_line_goes_through_its_points_and_up_from_nought() -> None:
    svg = drawn("t", "d", {"own": [(0, 0.0), (5, 10.0), (10, 5.0)], "dense": [(0, 2.5), (10, 2.5)]}, UNITS)
    (x0, y0), (x1, y1), (x2, y2) = points(svg, "own")
    assert (x0, y0, x2) == (LEFT, TOP + PLOT_HEIGHT, WIDTH - RIGHT)
    assert x1 == pytest.approx((x0 + x2) / 2, abs=0.1)
    assert y0 - y2 == pytest.approx((y0 - y1) / 2, abs=0.1)
    assert [y for _, y in points(svg, "dense")] == pytest.approx([y0 - (y0 - y1) / 4] * 2, abs=0.1)
    assert "<circle" not in svg and 'class="window"' not in svg


def test_the_window_is_shaded_within_the_plot() -> None:
    svg = drawn("t", "d", {"own": [(0, 1.0), (10, 1.0)]}, UNITS, window=(5, 99))
    place = re.search(r'class="window" x="([\d.]+)" y="[\d.]+" width="([\d.]+)"', svg)
    assert place is not None
    left, width = map(float, place.groups())
    assert left == pytest.approx((LEFT + WIDTH - RIGHT) / 2, abs=0.1) and left + width == pytest.approx(WIDTH - RIGHT)


def test_a_single_place_is_a_mark_or_nothing() -> None:
    named = {"own": ("a <b>", [(3.0, 7.0)])}
    assert lines("t", "c", named, UNITS).chart is None
    shown = lines("t", "c", named, UNITS, marked=True)
    assert shown.chart is not None and str(shown.chart).count("<circle") == 1 and "nan" not in shown.chart
    assert (shown.columns, shown.cells) == (("s", "a <b>"), [["3", "7"]])


def test_numbers_of_several_lines_stand_side_by_side() -> None:
    named = {"own": ("a", [(0.0, 1.0), (1.0, 2.0)]), "dense": ("b", [(1.0, 5.0), (2.0, 6.5)]), "sparse": ("c", [])}
    shown = lines("t", "c", named, UNITS)
    assert shown.legend == {"own": "a", "dense": "b"}
    assert shown.cells == [["0", "1", ""], ["1", "2", "5"], ["2", "", "6.5"]]
