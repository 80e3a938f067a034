"""Traffic that grows."""

import pytest

from twofour.bench.capacity import growth
from twofour.bench.capacity.growth import Growth
from twofour.prune.errors import InputError


@pytest.mark.parametrize("text", ["5", "5%", "5%/week", "x%/month", "-100%/month", "2000%/year", "", "nan%/month"])
def test_what_is_no_growth(text: str) -> None:
    with pytest.raises(InputError, match="write 5%/month"):
        growth.parse(text)


def test_a_year_is_twelve_months() -> None:
    assert growth.parse("5%/month") == Growth(0.05)
    assert growth.parse("40 %/year").times(12) == pytest.approx(1.4)


def test_machines_follow_the_traffic() -> None:
    found = growth.months(growth.parse("100%/month"), 10.0, 12.0, 3, 1)
    assert [month.machines for month in found[:3]] == [4, 6, 11] and len(found) == 13
    assert [month.rate for month in found[:3]] == [10, 20, 40]


def test_no_fewer_than_today_serve_what_is_served_today() -> None:
    # By headroom alone, 5 that could take 30 % more would be ceil(5 / 1.3) = 4.
    found = growth.months(growth.parse("5%/month"), 10.0, 13.0, 5, 0)
    assert [month.machines for month in found[:7]] == [5, 5, 5, 5, 5, 5, 6]


def test_headroom_lasts_until_traffic_has_grown_by_it() -> None:
    grows = growth.parse("10%/month")
    lasts = grows.lasts(0.5)
    assert lasts is not None and 1.1**lasts == pytest.approx(1.5)
    assert grows.lasts(0.0) == 0 and growth.parse("-5%/month").lasts(0.5) is None
