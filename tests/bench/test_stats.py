import math
import random
from itertools import pairwise
from statistics import linear_regression

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofour.bench import stats
from twofour.bench.stats import (
    FEWEST,
    chance,
    distribution,
    holm,
    independent,
    matched_ratio,
    named,
    paired_ratio,
    replicated,
    student,
    trend,
    unpaired_ratio,
    wilson,
    within_t,
)
from twofour.prune.errors import InputError


def type7(values: list[float], p: float) -> float:
    ranked, rank = sorted(values), p / 100 * (len(values) - 1)
    below = math.floor(rank)
    above = min(below + 1, len(ranked) - 1)
    return ranked[below] + (rank - below) * (ranked[above] - ranked[below])


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=400), st.integers(0, 20))
def test_percentiles_against_their_definitions(values: list[float], failed: int) -> None:
    got = distribution(values, failed)
    ranked = sorted(values) + [math.inf] * failed
    assert (got.n, got.failed) == (len(values), failed)
    assert got.mean == pytest.approx(sum(values) / len(values))
    assert (got.min, got.max) == (min(values), max(values))
    for p, fewest in FEWEST.items():
        plain, adjusted = getattr(got, named(p)), getattr(got, f"adjusted_{named(p)}")
        assert plain == (pytest.approx(type7(values, p), abs=1e-9) if len(values) >= fewest else None)
        if len(ranked) < fewest:
            assert adjusted is None
        else:  # the smallest value that at least p percent of all do not exceed
            assert adjusted == next(v for v in ranked if 100 * sum(w <= v for w in ranked) >= p * len(ranked))


@pytest.mark.parametrize("n", [40, 1000])
def test_failures_do_not_change_which_value_a_rank_is(n: int) -> None:
    for failed in range(1, n // 5 + 1):
        got = distribution([float(value) for value in range(n)], failed)
        for p in (50, 90, 95, 99):
            rank = math.ceil(p * (n + failed) / 100) - 1
            wanted = (rank if rank < n else math.inf) if n + failed >= FEWEST[p] else None
            assert getattr(got, f"adjusted_{named(p)}") == wanted


def test_the_fewest_values_are_those_of_a_distribution_free_interval() -> None:
    assert 1 - 2 * 0.5 ** FEWEST[50] >= 0.95 > 1 - 2 * 0.5 ** (FEWEST[50] - 1)
    for p in (90, 95, 99, 99.9):
        assert 1 - (p / 100) ** FEWEST[p] >= 0.95 > 1 - (p / 100) ** (FEWEST[p] - 1)


def test_one_in_a_thousand_needs_thousands() -> None:
    values = [float(value) for value in range(1, 2996)]
    got = distribution(values, failed=2)
    assert got.p999 == pytest.approx(type7(values, 99.9)) and got.p999 == pytest.approx(2992.006)
    assert got.adjusted_p999 == 2995.0  # the 2995th of 2997: 99.9 % are 2994.003
    assert distribution(values[1:]).p999 is None and distribution(values[1:], 1).adjusted_p999 is not None


def test_nothing_measured_has_no_numbers() -> None:
    assert distribution([], 3) == stats.Distribution(0, 3)


def test_the_t_quantiles_hold_95_percent_of_the_density() -> None:
    for freedom, quantile in enumerate(stats._T975, start=1):
        scale = math.gamma((freedom + 1) / 2) / math.sqrt(freedom * math.pi) / math.gamma(freedom / 2)
        steps = [quantile * (i / 20_000 * 2 - 1) for i in range(20_001)]
        heights = [scale * (1 + x * x / freedom) ** (-(freedom + 1) / 2) for x in steps]
        area = sum((a + b) / 2 for a, b in pairwise(heights)) * 2 * quantile / 20_000
        assert area == pytest.approx(0.95, abs=1e-5)


def test_a_ratio_is_second_over_first_and_turns_over_with_its_pairs() -> None:
    pairs = [(2.0, 1.0), (4.0, 1.0), (1.0, 1.0)]
    ratio = paired_ratio(pairs, 0)
    back = paired_ratio([(b, a) for a, b in pairs], 0)
    assert ratio.point == pytest.approx(0.5)
    assert ratio.low is not None and ratio.high is not None and back.low is not None
    assert ratio.low < ratio.point < ratio.high
    assert (back.point, back.low) == pytest.approx((2.0, 1 / ratio.high))
    half = 4.3027 * math.log(2) / math.sqrt(3)  # the log-ratios are -1, -2 and 0 times log 2
    assert ratio.high / ratio.point == pytest.approx(math.exp(half))


def test_one_pair_has_no_interval_and_no_pair_no_ratio() -> None:
    assert paired_ratio([(1.0, 4.0)], 0) == stats.Ratio(math.exp(math.log(4.0)), None, None, 1)
    for pairs in ([], [(0.0, 1.0)], [(1.0, math.nan)], [(1.0, math.inf)], [(1.0, -1.0)]):
        with pytest.raises(InputError):
            paired_ratio(pairs, 0)


@pytest.mark.parametrize("n", [3, 6, 25])
def test_the_interval_covers_the_true_ratio_about_95_times_in_a_hundred(
    n: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, runs = random.Random(n), 300
    monkeypatch.setattr(stats, "_RESAMPLES", 300)
    covered = 0
    for run in range(runs):
        trend = [draw.lognormvariate(0, 0.5) for _ in range(n)]  # what the two runs of a pair share
        pairs = [(x, x * 0.9 * draw.lognormvariate(0, 0.05)) for x in trend]
        ratio = paired_ratio(pairs, run)
        assert ratio.low is not None and ratio.high is not None
        covered += ratio.low <= 0.9 <= ratio.high
    assert 0.90 <= covered / runs <= 0.99


def test_the_bootstrap_is_seeded_and_near_the_normal_interval() -> None:
    draw = random.Random(4)
    pairs = [(1.0, draw.lognormvariate(0.2, 0.1)) for _ in range(100)]
    first, again = paired_ratio(pairs, 1), paired_ratio(pairs, 1)
    assert first == again != paired_ratio(pairs, 2)
    assert first.high is not None and first.low is not None
    width = math.log(first.high / first.low)
    assert width == pytest.approx(2 * 1.96 * 0.1 / 10, rel=0.25)


def unexplained(values: list[float], by: list[float]) -> list[float]:
    slope, start = linear_regression(by, values)
    return [value - start - slope * x for x, value in zip(by, values, strict=True)]


def test_a_trend_is_the_slope_of_what_the_others_leave() -> None:
    draw = random.Random(2)
    at = sorted(draw.uniform(1e6, 1e6 + 60) for _ in range(40))
    other = [draw.uniform(1, 100) for _ in at]
    values = [0.3 * x + 0.02 * y + draw.gauss(0, 0.5) for x, y in zip(at, other, strict=True)]
    assert trend(at, values, [])[0] == pytest.approx(linear_regression(at, values).slope)
    left = linear_regression(unexplained(at, other), unexplained(values, other)).slope
    assert trend(at, values, [other, [7.0] * 40])[0] == pytest.approx(left)  # what does not vary explains nothing
    assert trend([1.0, 2.0, 3.0, 4.0], [2.0, 4.0, 6.0, 8.0], [])[0] == pytest.approx(2.0)


@pytest.mark.parametrize("alike", [0.0, 0.6])
def test_the_error_of_a_trend_covers_none_about_95_times_in_a_hundred(alike: float) -> None:
    draw, runs, covered = random.Random(3), 400, 0
    for _ in range(runs):
        values = [draw.gauss(0, 1)]
        while len(values) < 80:
            values.append(alike * values[-1] + draw.gauss(0, 1))
        slope, error = trend(list(map(float, range(80))), values, [])
        covered += abs(slope) <= 2 * error
    assert 0.90 <= covered / runs <= 0.99


def test_a_group_counts_between_once_and_as_often_as_it_has_values() -> None:
    draw, groups, size = random.Random(5), 40, 25
    unlike = [[draw.gauss(0, 1) for _ in range(size)] for _ in range(groups)]
    shift = [draw.gauss(0, 0.5) for _ in range(groups)]
    alike = [[value + add for value in group] for group, add in zip(unlike, shift, strict=True)]
    same = [[float(index)] * size for index in range(groups)]
    assert independent(same) == groups
    assert independent(unlike) > 0.8 * groups * size
    by_hand = groups * size / (1 + (size - 1) * 0.25 / 1.25)  # the share of the variance that lies between the groups
    assert independent(alike) == pytest.approx(by_hand, rel=0.35)


def test_of_few_groups_and_of_single_values_each_group_counts_once() -> None:
    assert [independent(given) for given in ([], [[]], [[1.0, 2.0, 3.0]], [[1.0, 2.0], [2.0, 1.0]])] == [0, 0, 1, 2]
    assert independent([[float(value)] for value in range(30)]) == 30
    assert independent([[1.0, 1.0]] * 10) == 20  # nothing differs


def test_percentiles_go_by_the_independent_values() -> None:
    values = [float(value) for value in range(1000)]
    assert distribution(values).p99 is not None
    few = distribution(values, independent=60)
    assert (few.n, few.independent, few.p99, few.adjusted_p99) == (1000, 60, None, None)
    assert few.p95 == distribution(values).p95 and few.mean == distribution(values).mean


def density(x: float, freedom: int) -> float:
    """Of Student's t."""
    scale = math.gamma((freedom + 1) / 2) / math.gamma(freedom / 2) / math.sqrt(freedom * math.pi)
    return scale * (1 + x * x / freedom) ** (-(freedom + 1) / 2)


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 10, 17, 18, 60])
@pytest.mark.parametrize("t", [0.0, 0.3, 1.0, 2.5, 9.0])
def test_the_share_within_t_is_the_area_under_its_density(t: float, freedom: int) -> None:
    steps = 2000
    middles = [(step + 0.5) * t / steps for step in range(steps)]
    area = 2 * sum(density(x, freedom) for x in middles) * t / steps
    assert within_t(t, freedom) == pytest.approx(area, abs=1e-6)


def test_chance_is_below_a_twentieth_where_the_interval_leaves_1_out() -> None:
    for freedom, t in enumerate(stats._T975, start=1):
        assert within_t(t, freedom) == pytest.approx(0.95, abs=1e-4)
    draw = random.Random(4)
    for _ in range(200):
        pairs = [(1.0, math.exp(draw.gauss(0.05, 0.05))) for _ in range(6)]
        ratio, found = paired_ratio(pairs, 0), chance(pairs)
        assert ratio.low is not None and ratio.high is not None and found is not None
        assert (found < 0.05) == (not ratio.low <= 1 <= ratio.high)
    assert chance([(1.0, 2.0)]) is None and chance([(1.0, 2.0)] * 3) == 0.0 and chance([(2.0, 2.0)] * 3) == 1.0


def test_holm_by_hand() -> None:
    assert holm({}) == {}
    corrected = holm({"a": 0.01, "b": 0.04, "c": 0.03, "d": 0.005})
    assert corrected == pytest.approx({"d": 0.02, "a": 0.03, "c": 0.06, "b": 0.06})
    assert holm({"a": 0.9, "b": 0.8}) == {"b": 1.0, "a": 1.0}


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_its_steps_reject(found: list[float]) -> None:
    """From the least on, while each is at most 0.05 over how many are left; then all others stay."""
    rejected, names = set(), sorted(range(len(found)), key=lambda name: found[name])
    for rank, name in enumerate(names):
        if found[name] * (len(found) - rank) > 0.05:
            break
        rejected.add(name)
    corrected = holm(dict(enumerate(found)))
    assert {name for name, value in corrected.items() if value <= 0.05} == rejected


@pytest.mark.parametrize(
    ("found", "of", "low", "high"), [(0, 10, 0, 0.2775), (10, 10, 0.7225, 1), (81, 263, 0.2553, 0.3662)]
)
def test_wilsons_interval_as_published(found: int, of: int, low: float, high: float) -> None:
    assert wilson(found, of) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(0, 500), st.integers(1, 500))
def test_the_ends_of_wilsons_interval_solve_its_equation(found: int, of: int) -> None:
    found = min(found, of)
    for end in wilson(found, of):
        if 0 < end < 1:  # so far from the end is the share, in standard errors of the end
            assert abs(found / of - end) == pytest.approx(1.959964 * math.sqrt(end * (1 - end) / of), abs=1e-9)


@pytest.mark.parametrize(
    ("share", "freedom", "t"),
    [(0.95, 1, 12.7062), (0.95, 5, 2.5706), (0.95, 18, 2.1009), (0.99, 4, 4.6041), (0.999, 10, 4.5869)],
)
def test_students_t_as_published(share: float, freedom: int, t: float) -> None:
    assert student(share, freedom) == pytest.approx(t, abs=6e-5)
    assert within_t(student(share, freedom), freedom) == pytest.approx(share)


def test_welchs_interval_by_hand() -> None:
    base, other = [math.exp(x) for x in (0.0, 0.2)], [math.exp(x) for x in (0.5, 0.6, 0.7)]
    # Variances of the means: 0.02 / 2 and 0.01 / 3; freedom 0.0133^2 / (0.01^2 / 1 + 0.0033^2 / 2) = 1.68, so 1.
    half = 12.7062 * math.sqrt(0.01 + 0.01 / 3)
    found = unpaired_ratio(base, other)
    assert found.low and found.high
    assert (found.point, found.low, found.high) == pytest.approx(
        (math.exp(0.5), math.exp(0.5 - half), math.exp(0.5 + half)), rel=1e-4
    )
    assert unpaired_ratio([1.0], [2.0]) == stats.Ratio(2.0, None, None, 1)


@given(st.lists(st.tuples(st.floats(0.1, 10), st.floats(0.1, 10)), min_size=1, max_size=19))
def test_matched_runs_are_pairs(pairs: list[tuple[float, float]]) -> None:
    found, known = matched_ratio(*zip(*pairs, strict=True)), paired_ratio(pairs, 0)
    assert found.point == pytest.approx(known.point)
    assert (found.low is None) == (known.low is None) == (len(pairs) == 1)
    if found.low and known.low:
        assert found.low == pytest.approx(known.low, rel=1e-3 * (1 + abs(math.log(known.point / known.low))))


def test_a_percentile_over_runs_by_hand() -> None:
    runs = [[1.0, 2.0, 4.0], [2.0, 4.0, 8.0], [1.0, 4.0, 16.0]]
    found = replicated(runs, 50)
    pooled = sorted(value for run in runs for value in run)[4]
    away = [math.log(2.0 / pooled), math.log(4.0 / pooled), math.log(4.0 / pooled)]
    half = 4.3027 * math.sqrt(sum(each**2 for each in away) / 2 / 3)
    assert (found.point, found.n) == (pytest.approx(pooled), 3)
    assert (found.low, found.high) == (
        pytest.approx(pooled * math.exp(-half), rel=1e-4),
        pytest.approx(pooled * math.exp(half), rel=1e-4),
    )


def test_the_interval_of_a_percentile_holds_the_truth_about_95_times_in_a_hundred() -> None:
    draw, held, truth = random.Random(6), 0, math.exp(1.6449 * 0.5)
    for _ in range(300):
        shifts = [draw.gauss(0, 0.05) for _ in range(6)]  # what differs from run to run
        runs = [[draw.lognormvariate(shift, 0.5) for _ in range(200)] for shift in shifts]
        found = replicated(runs, 95)
        assert found.low is not None and found.high is not None
        held += found.low <= truth <= found.high
    assert 0.90 <= held / 300 <= 0.99


def test_one_run_has_no_interval_over_runs() -> None:
    found = replicated([[1.0, 3.0]], 50)
    assert (found.point, found.low, found.high, found.n) == (pytest.approx(2.0), None, None, 1)
    for runs in ([], [[]], [[1.0], []]):
        with pytest.raises(InputError, match="of one time at least"):
            replicated(runs, 95)
    with pytest.raises(InputError, match="no logarithm"):
        replicated([[0.0, 0.0, 1.0], [1.0]], 50)
    assert replicated([[0.0, 1.0, 1.0], [1.0]], 50).point == pytest.approx(1.0)
