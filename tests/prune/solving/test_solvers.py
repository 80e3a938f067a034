"""Solvers against slow oracles: a column at a time, in float64, with the remaining Hessian inverted explicitly."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twofour.prune.errors import FactorError
from twofour.prune.format import pattern
from twofour.prune.format.packed import pack
from twofour.prune.format.rounding import as_int8, to_int8
from twofour.prune.solving.gptq import gptq
from twofour.prune.solving.magnitude import magnitude
from twofour.prune.solving.sparsegpt import inverse_factor, sparsegpt
from twofour.prune.solving.wanda import wanda


def problem(rows: int, columns: int, tokens: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """A weight, correlated inputs, and their Hessian."""
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(tokens, columns, generator=generator) @ torch.randn(columns, columns, generator=generator)
    return torch.randn(rows, columns, generator=generator), inputs, inputs.T @ inputs


def sparsegpt_by_hand(weight: Tensor, hessian: Tensor, damping: float = 0.01) -> Tensor:
    """Optimal Brain Surgeon from left to right: the inverse of what remains is computed anew at every column."""
    left, damped = weight.double().clone(), hessian.double().clone()
    columns = left.shape[1]
    for j in range(columns):
        if damped[j, j] == 0:
            damped[j, j] = 1
            left[:, j] = 0
    damped += damping * damped.diagonal().mean() * torch.eye(columns)
    mask = torch.zeros_like(left, dtype=torch.bool)
    for j in range(columns):
        if j % 4 == 0:
            costs = [torch.linalg.inv(damped[k:, k:])[0, 0] for k in range(j, j + 4)]
            for row in range(len(left)):
                scores = [float(left[row, j + i] ** 2 / costs[i]) for i in range(4)]
                for i in sorted(range(4), key=lambda i: (-scores[i], i))[:2]:
                    mask[row, j + i] = True
        inverse = torch.linalg.inv(damped[j:, j:])
        for row in range(len(left)):
            if not mask[row, j]:
                left[row, j:] -= left[row, j] / inverse[0, 0] * inverse[0]
                left[row, j] = 0
    return left


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**32), st.sampled_from([4, 8, 128]))
def test_sparsegpt_is_the_slow_algorithm(rows: int, groups: int, seed: int, block_columns: int) -> None:
    weight, _, hessian = problem(rows, 4 * groups, 64, seed)
    pruned = sparsegpt(weight, hessian, block_columns=block_columns)
    torch.testing.assert_close(pruned.double(), sparsegpt_by_hand(weight, hessian), rtol=2e-3, atol=2e-3)
    assert pattern.first_violation(pruned) is None


def gptq_by_hand(weight: Tensor, hessian: Tensor) -> Tensor:  # both float64
    """A row and a column at a time; the inverse of what remains is computed anew at every column."""
    damped = hessian + 0.01 * hessian.diagonal().mean() * torch.eye(len(hessian))
    result = torch.zeros_like(weight)
    for row in range(len(weight)):
        left, peak = weight[row].clone(), float(weight[row].abs().max())
        for j in range(len(left)):
            if abs(weight[row, j]) == peak:
                left[j] = weight[row, j]
            whole = max(-127, min(127, round(float(left[j]) / (peak / 127))))
            result[row, j] = whole * peak / 127 if weight[row, j] else 0
            inverse = torch.linalg.inv(damped[j:, j:])
            left[j:] -= (left[j] - result[row, j]) / inverse[0, 0] * inverse[0]
    return result


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(1, 5), st.integers(0, 2**32), st.sampled_from([4, 8, 128]))
def test_gptq_is_the_slow_algorithm(rows: int, groups: int, seed: int, block_columns: int) -> None:
    weight, _, hessian = (part.double() for part in problem(rows, 4 * groups, 64, seed))
    pruned = sparsegpt(weight, hessian)
    rounded = gptq(pruned, hessian, block_columns=block_columns)
    torch.testing.assert_close(rounded, gptq_by_hand(pruned, hessian))
    assert not rounded[pruned == 0].any()


def test_what_gptq_has_rounded_is_not_rounded_again_and_loses_less() -> None:
    weight, inputs, hessian = problem(64, 128, 512, 0)
    pruned = sparsegpt(weight, hessian)
    pruned[5] = 0
    rounded = gptq(pruned, hessian)
    torch.testing.assert_close(to_int8(pack(rounded)).unpack(), rounded, rtol=1e-6, atol=0)
    lost = [float(((weight - each) @ inputs.T).square().sum()) for each in (pruned, rounded, as_int8(pruned))]
    assert lost[1] - lost[0] < 0.5 * (lost[2] - lost[0])


@pytest.mark.parametrize("damping", [0.001, 0.01, 1.0])
def test_damping_counts_from_the_mean_diagonal(damping: float) -> None:
    weight, _, hessian = problem(4, 16, 64, 3)
    pruned = sparsegpt(weight, hessian, damping)
    torch.testing.assert_close(pruned.double(), sparsegpt_by_hand(weight, hessian, damping), rtol=2e-3, atol=2e-3)
    torch.testing.assert_close(pruned, sparsegpt(weight, 1000 * hessian, damping), rtol=1e-3, atol=1e-3)


def test_blocks_change_nothing_but_rounding() -> None:
    weight, _, hessian = problem(16, 72, 200, 0)  # 72 is no multiple of 64: a short last block
    results = [sparsegpt(weight.double(), hessian.double(), block_columns=size) for size in (4, 64, 128)]
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


def test_the_mask_is_chosen_late_on_compensated_weights() -> None:
    weight, _, hessian = problem(64, 32, 200, 1)
    early = pattern.mask_from_scores(weight.square() / inverse_factor(hessian, 0.01).diagonal().square())
    late = sparsegpt(weight, hessian) != 0
    assert torch.equal(early[:, :4], late[:, :4]) and not torch.equal(early, late)


def test_rows_do_not_see_each_other() -> None:
    weight, _, hessian = problem(8, 24, 100, 2)
    whole = sparsegpt(weight, hessian)
    rows = torch.cat([sparsegpt(row[None], hessian) for row in weight])
    torch.testing.assert_close(whole, rows, rtol=1e-4, atol=1e-4)


def test_sparsegpt_loses_less_than_masks_alone() -> None:
    weight, inputs, hessian = problem(32, 64, 500, 4)

    def lost(pruned: Tensor) -> float:
        return float((inputs @ (weight - pruned).T).square().sum())

    solved = {"sparsegpt": sparsegpt(weight, hessian), "wanda": wanda(weight, hessian.diagonal())}
    assert lost(solved["sparsegpt"]) < 0.7 * lost(solved["wanda"])


def test_an_input_that_never_fired_gets_no_weight() -> None:
    weight, inputs, _ = problem(6, 16, 100, 5)
    inputs[:, [2, 9]] = 0
    hessian = inputs.T @ inputs
    pruned = sparsegpt(weight, hessian)
    assert not pruned[:, [2, 9]].any()
    torch.testing.assert_close(pruned.double(), sparsegpt_by_hand(weight, hessian), rtol=2e-3, atol=2e-3)


def test_all_inputs_dead_gives_zeros() -> None:
    assert not sparsegpt(torch.randn(3, 8), torch.zeros(8, 8)).any()


@pytest.mark.parametrize("tokens", [1, 3])
def test_fewer_tokens_than_inputs_are_held_by_the_damping(tokens: int) -> None:
    weight, _, hessian = problem(4, 32, tokens, 6)
    pruned = sparsegpt(weight, hessian)
    assert pattern.first_violation(pruned) is None
    torch.testing.assert_close(pruned.double(), sparsegpt_by_hand(weight, hessian), rtol=1e-2, atol=1e-2)
    assert not torch.equal(pruned != 0, magnitude(weight) != 0)


def test_the_factor_is_the_upper_cholesky_factor_of_the_inverse() -> None:
    _, _, hessian = problem(1, 40, 400, 7)
    damped = hessian.double() + 0.01 * hessian.double().diagonal().mean() * torch.eye(40)
    factor = inverse_factor(hessian.double(), 0.01)
    expected = torch.linalg.cholesky(torch.linalg.inv(damped), upper=True)
    torch.testing.assert_close(factor, expected)


@pytest.mark.parametrize("fault", ["indefinite", "nan", "inf"])
def test_a_hessian_without_a_factor_is_refused_and_never_becomes_magnitude(fault: str) -> None:
    weight, _, hessian = problem(4, 8, 100, 8)
    if fault == "indefinite":
        hessian[0, 1] = hessian[1, 0] = 10 * hessian.diagonal().max()
    else:
        hessian[2, 2] = float(fault)
    with pytest.raises(FactorError, match=r"8 inputs, damping 0\.01.*calibrate on more text"):
        sparsegpt(weight, hessian)


def test_block_columns_must_hold_whole_groups() -> None:
    with pytest.raises(ValueError, match="divisible by 4, got 6"):
        sparsegpt(torch.ones(1, 8), torch.eye(8), block_columns=6)


@pytest.mark.parametrize("solve", [lambda w: sparsegpt(w, torch.eye(4)), lambda w: wanda(w, torch.ones(4)), magnitude])
def test_of_equal_weights_the_first_two_stay(solve: object) -> None:
    assert callable(solve)
    assert (solve(torch.tensor([[1.0, -1.0, 1.0, -1.0]])) != 0).tolist() == [[True, True, False, False]]


@pytest.mark.parametrize("solve", [lambda w: sparsegpt(w, torch.eye(8)), lambda w: wanda(w, torch.ones(8)), magnitude])
def test_what_is_dropped_is_positive_zero(solve: object) -> None:
    assert callable(solve)
    pruned = solve(-torch.rand(5, 8) - 1)
    assert (pruned == 0).sum() == 20 and not torch.signbit(pruned[pruned == 0]).any()


def test_sparsegpt_leaves_its_arguments_alone() -> None:
    weight, _, hessian = problem(4, 8, 100, 9)
    copies = weight.clone(), hessian.clone()
    sparsegpt(weight, hessian)
    assert torch.equal(weight, copies[0]) and torch.equal(hessian, copies[1])


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 5), st.integers(1, 5), st.integers(0, 2**32))
def test_wanda_and_magnitude_by_hand(rows: int, groups: int, seed: int) -> None:
    weight, inputs, _ = problem(rows, 4 * groups, 20, seed)
    norms = [float(inputs[:, j].double().norm()) for j in range(weight.shape[1])]
    for pruned, scale in ((wanda(weight, inputs.square().sum(0)), norms), (magnitude(weight), [1.0] * len(norms))):
        for row, start in itertools.product(range(rows), range(0, weight.shape[1], 4)):
            best = sorted(range(start, start + 4), key=lambda j: (-abs(float(weight[row, j])) * scale[j], j))[:2]
            for j in range(start, start + 4):
                assert pruned[row, j] == (weight[row, j] if j in best else 0)


def test_wanda_prefers_a_small_weight_on_a_loud_input() -> None:
    weight, squares = torch.tensor([[4.0, 3.0, 2.0, 1.0]]), torch.tensor([1.0, 1.0, 1.0, 100.0])
    assert wanda(weight, squares).tolist() == [[4.0, 0.0, 0.0, 1.0]]
    assert magnitude(weight).tolist() == [[4.0, 3.0, 0.0, 0.0]]
