"""The search for the highest rate, without any server."""

from math import ceil, log2

from hypothesis import given
from hypothesis import strategies as st

from twofour.bench.sweep.search import Bracket, highest

KNEES = st.floats(0.05, 1e4)


@given(KNEES, st.floats(0.5, 20.0), st.floats(1.01, 2.0), st.sampled_from([0.01, 0.02, 0.1]))
def test_what_is_found_holds_the_knee(knee: float, start: float, step: float, within: float) -> None:
    asked: list[float] = []

    def kept(rate: float) -> bool:
        asked.append(rate)
        return rate <= knee

    found = highest(kept, start, step, within)
    if found.low is None:
        assert found.high == asked[-1] <= start and start / asked[-1] <= 2 * 16 and knee < found.high
    else:
        assert found.high and found.low <= knee < found.high <= found.low * (1 + within) * (1 + 1e-9)
        assert len(set(asked)) == len(asked) <= 2 * abs(log2(knee / start)) + 12 + ceil(log2(1 / within))


def test_how_it_goes_by_hand() -> None:
    asked: list[float] = []
    found = highest(lambda rate: (asked.append(rate), rate < 5)[1], 1.0, 2.0, 0.25)
    assert asked[:4] == [1, 2, 4, 8] and asked[4:] == [32**0.5, 4 * 2**0.25]
    assert found == Bracket(4 * 2**0.25, 32**0.5)
    asked.clear()
    highest(lambda rate: (asked.append(rate), rate < 0.9)[1], 1.0, 1.5, 1.0)
    assert asked == [1.0, 1 / 1.5]
    asked.clear()  # steps grow, but never beyond a factor of 2
    assert highest(lambda rate: (asked.append(rate), False)[1], 1.0, 1.5, 0.1) == Bracket(None, asked[-1])
    assert asked == [1, 1 / 1.5, 1 / 3, 1 / 6, 1 / 12]


def test_where_nothing_can_be_said_it_ends_with_what_it_has() -> None:
    assert highest(lambda rate: True if rate < 4 else None, 1.0, 2.0, 0.1) == Bracket(2.0, None)
    answers = iter([True, False, None])
    assert highest(lambda rate: next(answers), 1.0, 2.0, 0.1) == Bracket(1.0, 2.0)
