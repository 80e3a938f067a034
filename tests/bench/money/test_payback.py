"""When a pruning is paid back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofour.bench.money.cost import cost
from twofour.bench.money.payback import payback

RATES = st.floats(1.0, 1e5)


def test_by_hand() -> None:
    # An hour of a machine that makes 100 tokens a second is 360,000 tokens; half of their cost is saved.
    found = payback(60.0, 100.0, {"point": 0.5, "low": 0.4, "high": 1.1})
    assert (found.minutes, found.tokens) == (60.0, pytest.approx(720_000))
    assert found.low == pytest.approx(600_000) and found.high is None


@pytest.mark.parametrize("ratio", [1.0, 1.5])
def test_what_saves_nothing_is_never_paid_back(ratio: float) -> None:
    assert payback(1.0, 100.0, {"point": ratio, "low": None, "high": None}).tokens is None


@given(RATES, st.floats(1.01, 10.0), st.floats(0.1, 100.0), st.floats(0.1, 1000.0))
def test_then_the_saving_is_the_price_of_the_pruning(rate: float, faster: float, usd: float, minutes: float) -> None:
    dense, sparse = cost(usd, rate, rate).blended, cost(usd, rate * faster, rate * faster).blended
    found = payback(minutes, 2 * rate, {"point": sparse / dense, "low": None, "high": None})
    assert found.tokens and found.tokens / 1e6 * (dense - sparse) == pytest.approx(usd * minutes / 60)
