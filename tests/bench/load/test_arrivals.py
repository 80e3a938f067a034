import math
from itertools import islice, pairwise

from twofour.bench.load.arrivals import poisson


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
