"""Sums over tokens against loops, sharing, padding, and the place of a bad activation."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from twofour.prune.errors import ModelError, NonFiniteError
from twofour.prune.solving.statistics import Hessian, Norms, Observer, Positions, layer_loss


def outer_products(inputs: Tensor) -> Tensor:
    total = torch.zeros(inputs.shape[1], inputs.shape[1], dtype=torch.float64)
    for x in inputs.double():
        total += torch.outer(x, x)
    return total


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 2**32))
def test_sums_over_batches(width: int, tokens: int, seed: int) -> None:
    inputs = torch.randn(3 * tokens, width, generator=torch.Generator().manual_seed(seed))
    hessian, norms = Hessian(width), Norms(width)
    for batch in inputs.split(tokens):
        hessian.add(batch)
        norms.add(batch)
    expected = outer_products(inputs)
    assert hessian.tokens == norms.tokens == 3 * tokens
    torch.testing.assert_close(hessian.matrix.double(), expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(hessian.matrix, hessian.matrix.T)
    torch.testing.assert_close(norms.squares.double(), expected.diagonal(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(hessian.squares, norms.squares)


def test_what_is_added_after_a_look_at_the_matrix_counts() -> None:
    inputs, hessian = torch.randn(40, 20, generator=torch.Generator().manual_seed(0)), Hessian(20)
    for batch in inputs.split(10):
        hessian.add(batch)
        torch.testing.assert_close(hessian.matrix.trace(), hessian.squares.sum())
    torch.testing.assert_close(hessian.matrix.double(), outer_products(inputs), rtol=1e-4, atol=1e-4)
    assert torch.equal(hessian.matrix, hessian.matrix.T)


def test_energy_is_that_of_the_outputs() -> None:
    torch.manual_seed(0)
    inputs, weight = torch.randn(50, 12), torch.randn(7, 12)
    hessian, norms = Hessian(12), Norms(12)
    hessian.add(inputs)
    norms.add(inputs)
    assert hessian.energy(weight) == pytest.approx(float((inputs @ weight.T).square().sum()), rel=1e-5)
    alone = sum(float((inputs[:, [j]] @ weight[:, [j]].T).square().sum()) for j in range(12))
    assert norms.energy(weight) == pytest.approx(alone, rel=1e-5)


def test_layer_loss_is_the_relative_squared_error() -> None:
    torch.manual_seed(0)
    inputs, weight = torch.randn(50, 8), torch.randn(5, 8)
    pruned = weight * (torch.rand(5, 8) < 0.5)
    hessian = Hessian(8)
    hessian.add(inputs)
    dense = inputs @ weight.T
    expected = (dense - inputs @ pruned.T).square().sum() / dense.square().sum()
    assert layer_loss(weight, pruned, hessian) == pytest.approx(float(expected), rel=1e-4)
    by_weights = (weight - pruned).square().sum() / weight.square().sum()
    assert layer_loss(weight, pruned, None) == pytest.approx(float(by_weights))
    assert layer_loss(weight, weight, hessian) == 0.0
    assert layer_loss(torch.zeros(5, 8), torch.zeros(5, 8), hessian) == 0.0


def observe(observer: Observer, named: dict[str, Tensor], mask: Tensor | None = None) -> None:
    first = next(iter(named.values()))
    observer.start(Positions(10, first.shape[0], first.shape[1], mask))
    for name, inputs in named.items():
        observer.see(name, inputs)


def test_one_tensor_is_counted_once() -> None:
    observer, x, other = Observer(Hessian), torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    for _ in range(2):
        observe(observer, {"q": x, "k": x, "o": other, "v": x.view(2, 3, 8)})
    groups = {tuple(names): statistic for names, statistic in observer.groups()}
    assert set(groups) == {("q", "k", "v"), ("o",)}
    expected = 2 * outer_products(x.flatten(0, 1))
    torch.testing.assert_close(groups[("q", "k", "v")].energy(torch.eye(8)), float(expected.trace()))
    assert groups[("o",)].tokens == 12


def test_equal_numbers_in_two_tensors_are_two_statistics() -> None:
    observer, x = Observer(Norms), torch.randn(1, 3, 8)
    observe(observer, {"q": x, "k": x.clone()})
    assert [names for names, _ in observer.groups()] == [["q"], ["k"]]


def test_a_change_in_place_between_two_linears_is_seen() -> None:
    observer, x = Observer(Norms), torch.ones(1, 3, 8)
    observer.start(Positions(0, 1, 3))
    observer.see("q", x)
    observer.see("k", x.mul_(2))
    squares = {names[0]: statistic.squares[0].item() for names, statistic in observer.groups()}
    assert squares == {"q": 3.0, "k": 12.0}


def test_an_address_used_again_is_not_the_same_tensor() -> None:
    observer = Observer(Norms)
    observer.start(Positions(0, 1, 3))
    for name, value in (("q", 1.0), ("o", 2.0), ("down", 3.0)):
        observer.see(name, torch.full((1, 3, 8), value))  # freed at once, were it not kept
    assert [statistic.squares[0].item() for _, statistic in observer.groups()] == [3.0, 12.0, 27.0]


def test_sharing_in_some_passes_only_is_refused() -> None:
    observer, x = Observer(Norms), torch.ones(1, 3, 8)
    observe(observer, {"q": x, "k": x})
    with pytest.raises(ModelError, match="k shares its input with k in some passes only"):
        observe(observer, {"q": x, "k": x.clone()})


@pytest.mark.parametrize("flat", [False, True])
def test_padding_never_enters(flat: bool) -> None:
    x, mask = torch.randn(2, 4, 8), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]]).bool()
    x[~mask] = float("nan")
    observer = Observer(Hessian)
    observer.start(Positions(0, 2, 4, mask))
    observer.see("q", x.flatten(0, 1) if flat else x)
    ((_, statistic),) = observer.groups()
    assert statistic.tokens == 6
    expected = outer_products(torch.stack([x[0, 2], x[0, 3], *x[1]]))
    assert statistic.energy(torch.eye(8)) == pytest.approx(float(expected.trace()), rel=1e-5)


def test_padding_that_cannot_be_told_apart_is_refused() -> None:
    mask = torch.tensor([[False, True]])
    with pytest.raises(ModelError, match="q sees 5 rows of a batch of 2 positions"):
        Positions(0, 1, 2, mask).rows(torch.zeros(5, 8), "q")


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("statistic", [Hessian, Norms])
def test_a_bad_activation_is_named_with_its_place(bad: float, statistic: type[Hessian] | type[Norms]) -> None:
    x, mask = torch.randn(3, 5, 8), torch.ones(3, 5, dtype=torch.bool)
    mask[0, :2] = False
    x[1, 3, 7] = bad
    for padding in (None, mask):
        with pytest.raises(NonFiniteError, match=r"input of mlp\.down is NaN or infinite at sample 11, position 3"):
            observe(Observer(statistic), {"mlp.down": x}, padding)


def test_squares_that_overflow_are_refused() -> None:
    inputs = torch.full((3, 2, 4), 1e15)
    inputs[2, 1, 3] = -1e30
    with pytest.raises(NonFiniteError, match=r"inputs of q are too large .* the largest at sample \d+, position 1;"):
        observe(Observer(Norms), {"q": inputs})


def test_half_precision_inputs_are_summed_in_float32() -> None:
    observer = Observer(Norms)
    observe(observer, {"q": torch.ones(1, 3000, 4, dtype=torch.bfloat16)})
    ((_, statistic),) = observer.groups()
    assert statistic.squares.tolist() == [3000.0] * 4  # bfloat16 stops at 256
