import math
import re
from itertools import pairwise

import pytest

from twofour.bench.report import charts
from twofour.bench.report.arms import ARMS
from twofour.prune.label.charts import ticks


@pytest.mark.parametrize(
    ("low", "high"), [(0.0, 1.0), (40.2, 47.9), (0.003, 0.9), (5.0, 5.0), (0.0, 0.0), (1e-9, 2e-9), (7, 12345)]
)
def test_ticks_are_few_even_and_cover(low: float, high: float) -> None:
    found = ticks(low, high)
    steps = [after - before for before, after in pairwise(found)]
    assert found[0] <= low and high <= found[-1] + 1e-12
    assert 2 <= len(found) <= 7
    assert all(math.isclose(step, steps[0], rel_tol=1e-6, abs_tol=1e-11) for step in steps)


def test_a_distribution_curve_goes_through_its_quantiles() -> None:
    svg = charts.distributions("t", "d", {"dense": [float(n) for n in range(101)], "sparse": [50.0] * 3}, "ms")
    curve = re.search(r'curve dense" d="M([^"]+)"', svg)
    assert curve is not None
    points = [tuple(map(float, pair.split(","))) for pair in curve[1].split(" L")]
    xs, ys = zip(*points, strict=True)
    assert list(xs) == sorted(xs) and list(ys) == sorted(ys, reverse=True)
    middle = min(points, key=lambda point: abs(point[1] - (points[0][1] + points[-1][1]) / 2))
    assert middle[0] == pytest.approx((xs[0] + xs[-1]) / 2, rel=0.02)


def test_bars_are_as_long_as_their_values() -> None:
    known = charts.Bar("a<b", {"torch_dense": 8.0, "dense": 4.0, "sparse": 1.0}, dict.fromkeys(ARMS, "some"))
    unknown = charts.Bar("none", {"dense": 0, "sparse": None}, dict.fromkeys(ARMS, ""))
    svg = charts.bars("t", "d", [known, unknown])
    widths = [float(width) for width in re.findall(r'width="([\d.]+)"', svg)]
    assert [widths[0] / width for width in widths[:3]] == pytest.approx([1, 2, 8], rel=0.01)
    assert widths[3:] == [0, 0]
    assert "a&lt;b" in svg
