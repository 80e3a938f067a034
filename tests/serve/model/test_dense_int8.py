"""A dense linear in int8, against the product with the weight that was rounded by hand."""

import pytest
import torch
from torch import nn

from twofour.prune.errors import NonFiniteError
from twofour.prune.format.dense_int8 import to_dense_int8
from twofour.serve.model.dense_int8 import Int8Linear


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(24, 128), (13, 72)])
def test_it_multiplies_by_the_rounded_weight(shape: tuple[int, int], bias: bool) -> None:
    torch.manual_seed(0)
    rows, columns = shape
    linear = nn.Linear(columns, rows, bias).to(torch.bfloat16)
    x = torch.randn(3, 2, columns).bfloat16()
    rounded = Int8Linear.from_linear(linear)
    assert (rounded.in_features, rounded.out_features) == (columns, rows)
    packed = to_dense_int8(linear.weight)
    expected = x.double() @ packed.unpack().double().T + (linear.bias.double() if bias else 0)
    for module in (rounded, Int8Linear.from_int8(packed, linear.bias, torch.bfloat16)):
        with torch.inference_mode():
            y = module(x)
        assert y.dtype == torch.bfloat16
        torch.testing.assert_close(y.double(), expected, rtol=2e-2, atol=2e-2)


def test_a_weight_that_is_not_finite_is_named() -> None:
    linear = nn.Linear(64, 8)
    nn.init.constant_(linear.weight, float("inf"))
    with pytest.raises(NonFiniteError, match="lm_head"):
        Int8Linear.from_linear(linear, "lm_head")
