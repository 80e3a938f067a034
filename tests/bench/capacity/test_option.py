"""What an hour of a machine costs, as it is written."""

from datetime import date

import pytest
from plans import profile

from twofour.bench.capacity.option import options, prices
from twofour.prune.errors import InputError


def test_prices_as_they_are_written() -> None:
    found = prices(["a=2.5", "b=3@2026-05-01", "c=h200"])
    assert found["a"].usd_per_hour == 2.5 and found["a"].as_of is None
    assert found["b"].as_of == date(2026, 5, 1) and found["b"].age_days(date(2026, 5, 3)) == 2
    assert found["c"].usd_per_hour == 3.5 and found["c"].as_of is not None


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a", "write NAME=2.5"),
        ("=2", "write NAME=2.5"),
        ("a=", "write NAME=2.5"),
        ("a=2@may", "write NAME=2.5"),
        ("a=-1", "above 0"),
        ("a=nan", "above 0"),
        ("a=H100", "H100 SXM, H100 PCIe"),
    ],
)
def test_what_is_no_price(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        prices([text])


def test_options_are_told_apart_by_their_names() -> None:
    with pytest.raises(InputError, match="two profiles are named dense"):
        options([profile(), profile()], {})
    with pytest.raises(InputError, match="--price names x"):
        options([profile()], prices(["x=2"]))
    assert [each.price for each in options([profile()], {})] == [None]
