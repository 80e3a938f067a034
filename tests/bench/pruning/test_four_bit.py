"""4 bits simulated: against arithmetic by hand, one weight at a time, and in a folder."""

from pathlib import Path

import pytest
import torch

from twofour.bench.pruning.four_bit import GROUP, four_bit_bytes, rounded, write_rounded
from twofour.bench.pruning.judged import linears_of
from twofour.prune.format.weights import Weights


def by_hand(row: list[float]) -> list[float]:
    """What one row becomes."""
    out = list[float]()
    for start in range(0, len(row), GROUP):
        group = row[start : start + GROUP]
        scale = float(torch.tensor(max(map(abs, group)) / 7).bfloat16())
        for weight in group:
            value = min(7, max(-7, round(float(torch.tensor(weight) / scale)))) if scale else 0  # round: ties to even
            out.append(value * scale)
    return out


@pytest.mark.parametrize("columns", [1, 31, 32, 33, 100])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rounding_by_hand(columns: int, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(columns)
    weight = (torch.randn(6, columns, generator=generator) * 0.02).to(dtype)
    weight[2] = 0
    expected = torch.tensor([by_hand(row) for row in weight.float().tolist()]).to(dtype)
    assert torch.equal(rounded(weight), expected)
    assert torch.equal(rounded(weight)[2], torch.zeros(columns, dtype=dtype))


def test_a_group_has_fifteen_values_and_an_error_of_half_a_step() -> None:
    weight = torch.linspace(-1.4, 1.4, 4 * GROUP).reshape(1, -1).repeat(3, 1)[:, torch.randperm(4 * GROUP)]
    found = rounded(weight)
    for group, exact in zip(found.split(GROUP, 1), weight.split(GROUP, 1), strict=True):
        step = exact.abs().amax(1, keepdim=True) / 7
        assert len(group[0].unique()) <= 15
        assert bool(((group - exact).abs() <= 0.5 * step * 1.05).all())  # the scale has 8 bits
    assert torch.equal(rounded(torch.tensor([[7.0, -3.0, 0.5, 1.5]])), torch.tensor([[7.0, -3.0, 0.0, 2.0]]))


def test_bytes() -> None:
    assert four_bit_bytes(10, 64) == 10 * (32 + 4) and four_bit_bytes(1, 33) == 17 + 4


def test_a_folder_has_its_linears_rounded_and_nothing_else(tiny_model_folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "rounded"
    linears = linears_of(tiny_model_folder)
    write_rounded(tiny_model_folder, out, linears)
    names = {f"{name}.weight" for name in linears}
    with Weights(tiny_model_folder, "dense") as before, Weights(out, "dense") as after:
        assert list(before) == list(after) and names < set(before)
        for name in before:
            expected = rounded(before[name]) if name in names else before[name]
            assert torch.equal(after[name], expected)
            assert torch.equal(before[name], after[name]) == (name not in names)
    assert (out / "tokenizer.json").exists()
