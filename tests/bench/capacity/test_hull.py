import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from twofour.bench.capacity import hull

STEPS = st.lists(st.tuples(st.integers(0, 64), st.integers(0, 4096), st.integers(0, 100_000)), min_size=2, max_size=20)


@given(STEPS, st.lists(st.floats(0, 1), min_size=20, max_size=20))
def test_every_mean_of_measured_steps_lies_within(steps: list[tuple[int, int, int]], drawn: list[float]) -> None:
    rows = np.array(steps, float)
    weights = np.array(drawn[: len(rows)]) + 1e-9
    mean = weights @ rows / weights.sum()
    known = hull.around(*rows.T)
    assert known.holds(*rows.T).all()
    assert known.holds(*mean).all()


def test_what_was_not_measured_lies_outside() -> None:
    # Either many decodes or a long prompt, never both.
    known = hull.around([16, 0, 1], [0, 1000, 0], [1600, 0, 100])
    decodes, prefill, kv = np.array([[17, 0, 1700], [0, 1200, 0], [16, 1000, 1600], [1, 0, 1700], [8, 500, 800]]).T
    assert list(known.holds(decodes, prefill, kv)) == [False, False, False, False, True]
    assert list(hull.around([4], [0], [400]).holds([4], [1], [400])) == [False]  # no prompt was
