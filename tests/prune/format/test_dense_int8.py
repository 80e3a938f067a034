"""A dense weight in int8, against the rule written out by hand."""

import pytest
import torch

from twofour.prune.errors import NonFiniteError
from twofour.prune.format.dense_int8 import RUN, to_dense_int8


@pytest.mark.parametrize("columns", [64, 128, 72, 8])
def test_it_is_the_rule_by_hand(columns: int) -> None:
    weight = torch.randn(5, columns, generator=torch.Generator().manual_seed(0)).bfloat16()
    weight[2, :64] = 0
    packed = to_dense_int8(weight)
    assert packed.scales.shape == (5, -(-columns // RUN))
    for row in range(5):
        for run, begin in enumerate(range(0, columns, RUN)):
            inside = range(begin, min(begin + RUN, columns))
            scale = max(abs(float(weight[row, i])) for i in inside) / 127
            assert float(packed.scales[row, run]) == pytest.approx(scale, rel=1e-6)
            for i in inside:
                assert int(packed.values[row, i]) == (round(float(weight[row, i]) / scale) if scale else 0)


def test_what_is_read_back_is_within_half_a_scale() -> None:
    weight = torch.randn(16, 192, generator=torch.Generator().manual_seed(1))
    packed = to_dense_int8(weight)
    allowed = packed.scales.repeat_interleave(RUN, dim=1) * 0.5001
    assert bool(((packed.unpack() - weight).abs() <= allowed).all())
    again = to_dense_int8(packed.unpack())
    assert torch.equal(again.values, packed.values)


def test_not_finite_is_named() -> None:
    with pytest.raises(NonFiniteError, match="lm_head"):
        to_dense_int8(torch.full((2, 64), torch.nan), "lm_head")
