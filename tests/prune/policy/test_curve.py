"""What a sum of losses comes to, and back."""

import pytest

from twofour.prune.policy.curve import through


def test_what_was_measured_is_given_back() -> None:
    points = [(0.8, 0.9), (0.1, 0.3), (0.4, 0.6)]
    curve = through(points)
    assert curve.divergence(0) == 0
    for total, divergence in points:
        assert curve.divergence(total) == pytest.approx(divergence)
        assert curve.total(divergence) == pytest.approx(total)


def test_it_never_falls_and_ends_with_what_was_measured_last() -> None:
    curve = through([(0.2, 0.5), (0.4, 0.45), (1.0, 1.0)])  # the second is noise
    found = [curve.divergence(step / 50) for step in range(60)]
    assert found == sorted(found) and found[-1] == pytest.approx(1.0)
    assert curve.total(0.5) == pytest.approx(0.4) and curve.total(7.0) == 1.0


@pytest.mark.parametrize("divergence", [0.0, 0.001, 0.1, 0.3, 0.44, 0.59, 0.8999])
def test_back_and_forth(divergence: float) -> None:
    curve = through([(0.1, 0.3), (0.4, 0.6), (0.8, 0.9)])
    assert curve.divergence(curve.total(divergence)) == pytest.approx(divergence)


def test_mixtures_of_one_sum_are_one_point() -> None:
    curve = through([(0.0, 0.0), (0.5, 0.2), (0.5, 0.2)])
    assert curve.sums == (0.0, 0.5)
