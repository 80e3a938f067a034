import math
import random
from statistics import fmean, stdev

import pytest

from twofour.bench.load.workload import Lengths
from twofour.bench.traffic.lengths import Mixture, Pause, pause, tokens
from twofour.prune.errors import InputError


def test_lengths_are_read_and_written() -> None:
    assert tokens("128~0.3") == Lengths(128, 0.3)
    mixed = tokens("0.7x128~0.3 + 0.3x2048")
    assert mixed == Mixture((0.7, 0.3), (Lengths(128, 0.3), Lengths(2048)))
    assert str(mixed) == "0.7x128~0.3+0.3x2048" and tokens(str(mixed)) == mixed
    assert mixed.mean == pytest.approx(0.7 * 128 + 0.3 * 2048)


def test_a_mixture_has_the_shares_and_the_kinds_asked_for() -> None:
    draw, n = random.Random(1), 20_000
    drawn = [tokens("0.2x5+0.8x100~0.4").draw(draw) for _ in range(n)]
    short = drawn.count(5) / n
    assert abs(short - 0.2) < 4 * math.sqrt(0.2 * 0.8 / n)
    long = [value for value in drawn if value != 5]
    assert abs(fmean(long) - 100) < 5 * stdev(long) / math.sqrt(len(long))


@pytest.mark.parametrize(
    "text", ["0.5x8", "0.5x8+0.6x9", "x8+x9", "0x8+1x9", "-1x8+2x9", "0.5x8+9", "0.5xq+0.5x9", "1.5x8"]
)
def test_a_wrong_mixture_is_refused(text: str) -> None:
    with pytest.raises(InputError):
        tokens(text)


def test_pauses() -> None:
    assert [pause("2"), pause("0.5~0.4"), str(pause("2.5~0.5")), str(Pause(3.0))] == [
        Pause(2.0),
        Pause(0.5, 0.4),
        "2.5~0.5",
        "3",
    ]
    draw, n = random.Random(2), 20_000
    drawn = [Pause(2.0, 0.5).draw(draw) for _ in range(n)]
    assert abs(fmean(drawn) - 2) < 4 * stdev(drawn) / math.sqrt(n)
    assert {Pause(1.5).draw(draw), Pause(0.0, 0.5).draw(draw)} == {1.5, 0.0}


@pytest.mark.parametrize("text", ["", "x", "-1", "inf", "nan", "1~-1", "1~9", "1~x"])
def test_a_wrong_pause_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="pause"):
        pause(text)
