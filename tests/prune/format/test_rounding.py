"""Rounding to int8 against the rule written out by hand, and what it promises of any weight."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twofour.prune.errors import InputError
from twofour.prune.format import pattern
from twofour.prune.format.packed import Packed, pack, scale_count, validate
from twofour.prune.format.rounding import as_int8, to_int8

SCALE_COLUMNS = (0, 64, 8)


def sparse(rows: int, columns: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator) * torch.rand(rows, 1, generator=generator)
    return weight * pattern.mask_from_scores(torch.rand(rows, columns, generator=generator))


def by_hand(weight: Tensor, scale_columns: int) -> tuple[Tensor, Tensor]:
    """One number at a time: whole numbers [out, in] and scales [out, runs]."""
    rows, columns = weight.shape
    width = scale_columns or columns
    scales = torch.zeros(rows, -(-columns // width))
    whole = torch.zeros(rows, columns)
    for row in range(rows):
        for run in range(scales.shape[1]):
            inside = range(run * width, min((run + 1) * width, columns))
            scales[row, run] = max(abs(float(weight[row, i])) for i in inside) / 127
            for i in inside:
                whole[row, i] = round(float(weight[row, i] / scales[row, run])) if scales[row, run] else 0
    return whole, scales


def dense_integers(packed: Packed) -> Tensor:
    return Packed(packed.values.float(), packed.positions).unpack()


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 34), st.integers(0, 2**32), st.sampled_from(SCALE_COLUMNS))
def test_the_rule(rows: int, groups: int, seed: int, scale_columns: int) -> None:
    weight = sparse(rows, 4 * groups, seed)
    rounded = to_int8(pack(weight), scale_columns)
    validate(rounded, "w")
    whole, scales = by_hand(weight, scale_columns)
    assert rounded.scales is not None and torch.equal(rounded.scales, scales)
    assert torch.equal(dense_integers(rounded), whole)
    spread = scales.repeat_interleave(scale_columns or weight.shape[1], dim=1)[:, : weight.shape[1]]
    assert ((rounded.unpack() - weight).abs() <= spread * 0.5001 + 1e-12).all()
    canonical = pack(whole)  # packing is a function of the weight, also where a value became 0
    assert torch.equal(rounded.positions, canonical.positions)
    assert torch.equal(rounded.values.float(), canonical.values)


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 4), st.integers(1, 34), st.integers(0, 2**32))
def test_what_is_trained_through_is_what_is_stored(rows: int, groups: int, seed: int) -> None:
    weight = sparse(rows, 4 * groups, seed)
    weight[0] = 0
    assert torch.equal(as_int8(weight), to_int8(pack(weight)).unpack())
    assert torch.equal(as_int8(weight.bfloat16()), to_int8(pack(weight.bfloat16().float())).unpack().bfloat16())


def test_ties_go_to_the_even_number() -> None:
    row = torch.tensor([[127.0, 2.5, 0, 0, 3.5, -0.5, 0, 0, -1.5, 0.5, 0, 0]])
    rounded = to_int8(pack(row))
    assert rounded.scales is not None and rounded.scales.tolist() == [[1.0]]
    assert dense_integers(rounded).tolist() == [[127, 2, 0, 0, 4, 0, 0, 0, -2, 0, 0, 0]]


@pytest.mark.parametrize("scale_columns", SCALE_COLUMNS)
def test_zeros_have_the_scale_zero(scale_columns: int) -> None:
    weight = sparse(3, 128)
    weight[1] = 0
    weight[2, :64] = 0
    rounded = to_int8(pack(weight), scale_columns)
    assert rounded.scales is not None
    assert (rounded.scales[1] == 0).all() and (rounded.unpack()[1] == 0).all()
    assert rounded.scales.shape == (3, scale_count(128, scale_columns))
    validate(rounded, "w")


@pytest.mark.parametrize("size", [1e-45, 1e-44, 1e-40, 3e38])
def test_the_smallest_and_largest_numbers_stay_finite(size: float) -> None:
    rounded = to_int8(pack(torch.tensor([[size, -size, 0, 0]])))
    validate(rounded, "w")
    assert rounded.values.abs().max() <= 127
    assert float((rounded.unpack() - torch.tensor([[size, -size, 0, 0]])).abs().max()) <= max(size / 127, 2e-43)


def test_more_scales_lose_less() -> None:
    weight = sparse(16, 256)
    errors = {columns: float((to_int8(pack(weight), columns).unpack() - weight).square().sum()) for columns in (0, 64)}
    assert errors[64] < errors[0]


@pytest.mark.parametrize("scale_columns", SCALE_COLUMNS)
def test_rounding_what_was_rounded_changes_a_scale_by_its_last_bit_at_most(scale_columns: int) -> None:
    once = to_int8(pack(sparse(32, 132)), scale_columns)
    again = to_int8(pack(once.unpack()), scale_columns)
    assert torch.equal(again.values, once.values) and torch.equal(again.positions, once.positions)
    assert again.scales is not None and once.scales is not None
    torch.testing.assert_close(again.scales, once.scales, rtol=2**-23, atol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_values_of_any_float_dtype(dtype: torch.dtype) -> None:
    weight = sparse(4, 64).to(dtype)
    rounded, wide = to_int8(pack(weight)), to_int8(pack(weight.float()))
    assert torch.equal(rounded.values, wide.values) and torch.equal(rounded.unpack(), wide.unpack())


def test_what_cannot_be_rounded() -> None:
    packed = pack(sparse(2, 64))
    for scale_columns in (-4, 6):
        with pytest.raises(InputError, match=f"scale_columns is {scale_columns}; give 0 or a multiple of 4"):
            to_int8(packed, scale_columns)
    with pytest.raises(InputError, match="int8 already"):
        to_int8(to_int8(packed))
