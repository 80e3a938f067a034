"""Refine against an oracle that tries every mask and solves each exactly, in float64."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twofour.prune.errors import FactorError
from twofour.prune.format import pattern
from twofour.prune.solving.magnitude import magnitude
from twofour.prune.solving.refine import group_tables, refine, refit
from twofour.prune.solving.sparsegpt import damped, sparsegpt

PAIRS = list(itertools.combinations(range(4), 2))


def problem(rows: int, columns: int, seed: int, tokens: int = 64) -> tuple[Tensor, Tensor]:
    """A weight and the Hessian of correlated inputs, in float64."""
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(columns, columns, generator=generator, dtype=torch.float64)
    inputs = torch.randn(tokens, columns, generator=generator, dtype=torch.float64) @ mix
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64), inputs.T @ inputs


def lost(weight: Tensor, pruned: Tensor, hessian: Tensor) -> Tensor:  # -> [out]
    """The loss of every row under the damped Hessian."""
    change = (pruned - weight).double()
    return ((change @ damped(hessian.double(), 0.01)) * change).sum(1)


def solved(row: Tensor, kept: list[int], hessian: Tensor) -> Tensor:
    """The best row for a mask: the normal equations of its kept inputs."""
    whole = damped(hessian, 0.01)
    result = torch.zeros_like(row)
    result[kept] = torch.linalg.solve(whole[kept][:, kept], (whole @ row)[kept])
    return result


def best_of_all(row: Tensor, hessian: Tensor, fixed: Tensor, groups: list[int]) -> Tensor:
    """The best row over every mask of some groups, all values of the mask free; other groups keep their mask."""
    rest = [i for i in fixed.nonzero().flatten().tolist() if i // 4 not in groups]
    masks = itertools.product(*[[[4 * group + i for i in pair] for pair in PAIRS] for group in groups])
    candidates = [solved(row, sorted(rest + list(itertools.chain(*chosen))), hessian) for chosen in masks]
    losses = [float(lost(row[None], candidate[None], hessian)) for candidate in candidates]
    return candidates[losses.index(min(losses))]


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 8), st.integers(0, 2**32))
def test_one_group_gets_the_best_of_all_masks(rows: int, seed: int) -> None:
    weight, hessian = problem(rows, 4, seed)
    refined = refine(weight, hessian, torch.zeros_like(weight), sweeps=1, refit_steps=0)
    expected = torch.stack([best_of_all(row, hessian, torch.zeros(4), [0]) for row in weight])
    torch.testing.assert_close(refined, expected)


@settings(deadline=None, max_examples=20)
@given(st.integers(0, 2**32))
def test_two_groups_end_where_no_change_of_one_group_helps(seed: int) -> None:
    weight, hessian = problem(12, 8, seed)
    refined = refine(weight, hessian, sparsegpt(weight, hessian), sweeps=300, refit_steps=8)
    for row, result in zip(weight, refined, strict=True):
        for group in (0, 1):
            inside, others = slice(4 * group, 4 * group + 4), result.clone()
            for pair in PAIRS:  # the other group stays as it is, values too
                kept = [4 * group + i for i in pair]
                others[inside] = 0
                change, whole = others - row, damped(hessian, 0.01)
                others[kept] = -torch.linalg.solve(whole[kept][:, kept], (whole @ change)[kept])
                assert lost(row[None], result[None], hessian) <= lost(row[None], others[None], hessian) * (1 + 1e-9)


def test_two_groups_go_three_quarters_of_the_way_to_the_best_of_all_36_masks() -> None:
    weight, hessian = problem(60, 8, 0)
    refined = refine(weight, hessian, sparsegpt(weight, hessian), refit_steps=8)
    best = torch.stack([best_of_all(row, hessian, torch.zeros(8), [0, 1]) for row in weight])
    start, found, least = (
        float(lost(weight, pruned, hessian).sum()) for pruned in (sparsegpt(weight, hessian), refined, best)
    )
    assert least * (1 - 1e-9) <= found < least + 0.25 * (start - least)


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 2**32), st.sampled_from([4, 8, 128]))
def test_every_sweep_and_every_refit_loses_less_in_every_row(rows: int, groups: int, seed: int, block: int) -> None:
    weight, hessian = problem(rows, 4 * groups, seed)
    last = magnitude(weight)
    for sweeps, steps in [(0, 1), (0, 3), (0, 9), (1, 0), (2, 0), (3, 0), (3, 1), (3, 9)]:
        if (sweeps, steps) == (1, 0):
            last = magnitude(weight)  # another path: sweeps first
        refined = refine(weight, hessian, magnitude(weight), sweeps=sweeps, refit_steps=steps, block_columns=block)
        assert bool((lost(weight, refined, hessian) <= lost(weight, last, hessian) * (1 + 1e-9) + 1e-12).all())
        assert pattern.first_violation(refined) is None
        last = refined


def test_the_refit_solves_the_normal_equations_of_every_row() -> None:
    weight, hessian = problem(16, 24, 1, tokens=400)
    start = magnitude(weight)
    expected = torch.stack(
        [solved(row, mask.nonzero().flatten().tolist(), hessian) for row, mask in zip(weight, start, strict=True)]
    )
    result = refit(weight.T, start.T, damped(hessian, 0.01), steps=60).T
    torch.testing.assert_close(result, expected, rtol=1e-6, atol=1e-8)
    assert torch.equal(result != 0, start != 0)


def test_a_solved_start_stays_and_makes_no_nan() -> None:
    weight, hessian = problem(5, 12, 2)
    once = refine(weight, hessian, sparsegpt(weight, hessian), sweeps=200, refit_steps=50)
    twice = refine(weight, hessian, once, sweeps=5, refit_steps=50)
    torch.testing.assert_close(twice, once, rtol=1e-6, atol=1e-9)
    assert torch.equal(refine(magnitude(weight), hessian, magnitude(weight), sweeps=0), magnitude(weight))


def test_float32_loses_less_than_sparsegpt_and_is_the_same_every_time() -> None:
    weight, hessian = (tensor.float() for tensor in problem(64, 260, 3, tokens=1000))  # two blocks and a rest
    start = sparsegpt(weight, hessian)
    refined = refine(weight, hessian, start)
    assert float(lost(weight, refined, hessian).sum()) < 0.9 * float(lost(weight, start, hessian).sum())
    assert refined.dtype == torch.float32 and refined.is_contiguous()
    assert torch.equal(refined, refine(weight, hessian, start))
    assert pattern.first_violation(refined) is None
    zeros = refined[refined == 0]
    assert len(zeros) >= refined.numel() / 2 and not bool(torch.signbit(zeros).any())


def test_blocks_change_nothing_but_rounding() -> None:
    weight, hessian = problem(16, 72, 4, tokens=200)
    start = sparsegpt(weight, hessian)
    results = [refine(weight, hessian, start, block_columns=size) for size in (4, 64, 128)]
    torch.testing.assert_close(results[0], results[1])
    torch.testing.assert_close(results[0], results[2])


def test_rows_do_not_see_each_other() -> None:
    weight, hessian = problem(8, 24, 5)
    start = sparsegpt(weight, hessian)
    rows = [refine(row[None], hessian, first[None]) for row, first in zip(weight, start, strict=True)]
    torch.testing.assert_close(refine(weight, hessian, start), torch.cat(rows))


def test_an_input_that_never_fired_gets_no_weight_and_changes_nothing() -> None:
    weight, hessian = problem(6, 16, 6)
    hessian[[2, 9], :] = hessian[:, [2, 9]] = 0
    weight[:, 2] = 1e6
    refined = refine(weight, hessian, sparsegpt(weight, hessian))
    assert not refined[:, [2, 9]].any()
    weight[:, 2] = 0
    torch.testing.assert_close(refined, refine(weight, hessian, sparsegpt(weight, hessian)))
    assert not refine(torch.randn(3, 8), torch.zeros(8, 8), torch.zeros(3, 8)).any()


@pytest.mark.parametrize("tokens", [1, 3])
def test_fewer_tokens_than_inputs_are_held_by_the_damping(tokens: int) -> None:
    weight, hessian = (tensor.float() for tensor in problem(4, 32, 7, tokens))
    start = sparsegpt(weight, hessian)
    refined = refine(weight, hessian, start)
    assert bool(torch.isfinite(refined).all()) and pattern.first_violation(refined) is None
    assert bool((lost(weight, refined, hessian) <= lost(weight, start, hessian) * 1.001).all())


def test_damping_counts_from_the_mean_diagonal() -> None:
    weight, hessian = problem(4, 16, 8)
    start = sparsegpt(weight, hessian)
    torch.testing.assert_close(refine(weight, hessian, start), refine(weight, 1000 * hessian, start))
    heavy = refine(weight, hessian, magnitude(weight), damping=1e9)
    torch.testing.assert_close(heavy, magnitude(weight), rtol=1e-6, atol=1e-6)  # identity: the weights themselves count


def test_of_equal_choices_the_lowest_indices_stay() -> None:
    weight = torch.tensor([[1.0, -1.0, 1.0, -1.0]])
    refined = refine(weight, torch.eye(4), torch.tensor([[0.0, 0.0, 1.0, -1.0]]))
    assert torch.equal(refined, torch.tensor([[1.0, -1.0, 0.0, 0.0]]))


@pytest.mark.parametrize("fault", ["indefinite", "nan", "inf"])
def test_a_group_without_an_inverse_is_refused(fault: str) -> None:
    weight, hessian = problem(4, 8, 9)
    if fault == "indefinite":
        hessian[0, 1] = hessian[1, 0] = 10 * hessian.diagonal().max()
    else:
        hessian[2, 2] = float(fault)
    with pytest.raises(FactorError, match="calibrate on more text"):
        refine(weight, hessian, magnitude(weight))


def test_block_columns_must_hold_whole_groups() -> None:
    with pytest.raises(ValueError, match="divisible by 4, got 6"):
        refine(torch.ones(1, 8), torch.eye(8), torch.zeros(1, 8), block_columns=6)


def test_the_tables_say_what_every_choice_costs_and_makes() -> None:
    _, hessian = problem(1, 12, 10)
    tables = group_tables(hessian)
    best = torch.randn(4, dtype=torch.float64)
    for group in range(3):
        inside = hessian[4 * group : 4 * group + 4, 4 * group : 4 * group + 4]
        for choice, (kept, dropped) in enumerate(zip(PAIRS, reversed(PAIRS), strict=True)):
            made = (tables.values[group] @ best).view(6, 4)[choice]
            away = made - best
            assert not made[list(dropped)].any()
            torch.testing.assert_close(
                (inside @ away)[list(kept)], torch.zeros(2, dtype=torch.float64), atol=1e-8, rtol=0
            )
            torch.testing.assert_close(
                tables.costs[group, choice] @ torch.outer(best, best).flatten(), away @ inside @ away
            )
