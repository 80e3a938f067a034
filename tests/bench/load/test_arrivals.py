import math
from itertools import islice, pairwise
from statistics import fmean, stdev

import pytest

from twofour.bench.load.arrivals import at_rate, poisson, ramp, units


def test_the_same_seed_gives_the_same_arrivals_and_another_seed_others() -> None:
    first, again, other = (list(islice(poisson(3.0, seed), 50)) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_the_gaps_are_exponential() -> None:
    rate, n = 4.0, 20_000
    times = [0.0, *islice(poisson(rate, 7), n)]
    gaps = [after - before for before, after in pairwise(times)]
    assert min(gaps) > 0
    assert math.isclose(n / times[-1], rate, rel_tol=4 / math.sqrt(n))
    for quantile in (0.1, 0.5, 0.9):  # of the exponential: -ln(1 - q) / rate
        share = sum(gap <= -math.log(1 - quantile) / rate for gap in gaps) / n
        assert abs(share - quantile) < 4 * math.sqrt(quantile * (1 - quantile) / n)


def test_the_rate_only_scales_the_times() -> None:
    slow, fast = list(islice(poisson(1.0, 5), 20)), list(islice(poisson(10.0, 5), 20))
    assert all(math.isclose(a, 10 * b) for a, b in zip(slow, fast, strict=True))


@pytest.mark.parametrize("shape", [0.25, 1.0, 4.0])
def test_gaps_vary_by_one_over_the_root_of_the_shape(shape: float) -> None:
    n = 40_000
    gaps = [after - before for before, after in pairwise([0.0, *islice(units(shape, 3), n)])]
    assert abs(fmean(gaps) - 1) < 4 * stdev(gaps) / math.sqrt(n)
    assert math.isclose(stdev(gaps) / fmean(gaps), 1 / math.sqrt(shape), rel_tol=0.05)


def test_constant_arrivals_are_evenly_spaced() -> None:
    assert list(islice(at_rate(units(None, 0), 4.0), 4)) == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(("rate", "to_rate"), [(2.0, 20.0), (20.0, 2.0), (0.0, 10.0), (5.0, 5.0)])
def test_a_ramp_brings_as_many_as_its_rate_adds_up_to(rate: float, to_rate: float) -> None:
    """Against the sum of the rate over a thousand small steps; the ramp ends after 8 s."""
    over_s, steps = 8.0, 1000
    times = list(islice(ramp(units(None, 0), rate, to_rate, over_s), 150))
    assert times == sorted(times)
    for number, at_s in enumerate(times, 1):
        step = at_s / steps
        middles = ((index + 0.5) * step for index in range(steps))
        expected = sum(rate + (to_rate - rate) * min(middle / over_s, 1.0) for middle in middles) * step
        assert math.isclose(expected, number, rel_tol=1e-3)


def test_a_ramp_of_one_rate_is_that_rate() -> None:
    flat = list(islice(ramp(units(1.0, 2), 3.0, 3.0, 5.0), 40))
    assert flat == pytest.approx(list(islice(poisson(3.0, 2), 40)))
