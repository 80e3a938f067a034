"""The 2:4 rule against counting by hand."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twofour.prune.errors import PatternError
from twofour.prune.format import pattern


def mask_by_hand(scores: Tensor) -> Tensor:
    """Walk through the groups; sort (-score, index)."""
    mask = torch.zeros_like(scores, dtype=torch.bool)
    for row in range(scores.shape[0]):
        for start in range(0, scores.shape[1], 4):
            order = sorted(range(4), key=lambda i: (-float(scores[row, start + i]), i))
            for i in order[:2]:
                mask[row, start + i] = True
    return mask


def test_every_order_with_ties() -> None:
    scores = torch.tensor(list(itertools.product(range(4), repeat=4)), dtype=torch.float32)  # all 256 rankings
    assert torch.equal(pattern.mask_from_scores(scores), mask_by_hand(scores))


def test_of_equal_scores_the_lowest_index_wins() -> None:
    scores = torch.tensor([[1.0, 1.0, 1.0, 1.0, 0.0, 2.0, 2.0, 2.0, 1.0, 0.0, -0.0, 0.0]])
    expected = [1, 1, 0, 0, 0, 1, 1, 0, 1, 1, 0, 0]
    assert pattern.mask_from_scores(scores).int().tolist() == [expected]


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 5), st.integers(1, 7), st.integers(0, 2**32), st.sampled_from([torch.float32, torch.bfloat16]))
def test_mask_is_the_mask_by_hand(rows: int, groups: int, seed: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randn(rows, 4 * groups, generator=generator).mul(2).round().to(dtype)  # many ties
    mask = pattern.mask_from_scores(scores)
    assert torch.equal(mask, mask_by_hand(scores))
    assert (mask.unflatten(1, (-1, 4)).sum(-1) == 2).all()


def test_infinite_scores_are_the_highest() -> None:
    scores = torch.tensor([[1.0, float("inf"), 2.0, -float("inf")]])
    assert pattern.mask_from_scores(scores).tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("columns", [1, 2, 3, 5, 66])
def test_a_width_that_4_does_not_divide_is_refused(columns: int) -> None:
    with pytest.raises(PatternError, match=f"divisible by 4, got {columns}"):
        pattern.mask_from_scores(torch.ones(2, columns))
    with pytest.raises(PatternError, match=f"divisible by 4, got {columns}"):
        pattern.first_violation(torch.ones(2, columns))


def test_the_first_violation_is_by_row_then_column() -> None:
    weight = torch.zeros(3, 12)
    weight[1, 8:11] = 1.0
    weight[2, 0:3] = 1.0
    assert pattern.first_violation(weight) == pattern.Violation(row=1, column=8)
    with pytest.raises(PatternError, match=r"q_proj is not 2:4 at row 1, columns 8-11"):
        pattern.require(weight, "q_proj")


def test_every_occupation_of_a_group() -> None:
    for bits in itertools.product((0.0, 1.0), repeat=4):
        violated = pattern.first_violation(torch.tensor([bits])) is not None
        assert violated == (sum(bits) > 2), bits


def test_negative_zero_is_zero_and_nan_is_not() -> None:
    assert pattern.first_violation(torch.tensor([[1.0, -0.0, 2.0, -0.0]])) is None
    assert pattern.first_violation(torch.tensor([[1.0, float("nan"), 2.0, 0.0]])) is not None


def test_no_rows_and_no_columns_are_fine() -> None:
    assert pattern.first_violation(torch.zeros(0, 8)) is None
    assert pattern.mask_from_scores(torch.zeros(3, 0)).shape == (3, 0)
