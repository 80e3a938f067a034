"""Adam in two sizes: the lean one against Adam in float64, its halves and codes by themselves."""

import math

import pytest
import torch
from pruned_families import tiny
from torch import Tensor, nn

from twofour.prune import PruneConfig
from twofour.prune.config import Values
from twofour.prune.format import pattern
from twofour.prune.format.rounding import as_int8
from twofour.prune.model import anatomy
from twofour.prune.recovery import eight_bit, optimiser
from twofour.prune.recovery.kept import KeptWeights
from twofour.prune.recovery.optimiser import BETAS, Full, Lean, Rounding, halves, joined
from twofour.prune.recovery.training import learn
from twofour.prune.run import training_bytes
from twofour.prune.solving.magnitude import magnitude


def pruned(rows: int = 24, columns: int = 64, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> Tensor:
    return magnitude(torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))).to(dtype)


def slopes(steps: int, rows: int = 24, columns: int = 64) -> list[Tensor]:
    """Gradients of rows and columns that differ by orders of magnitude, as those of real models do."""
    generator = torch.Generator().manual_seed(1)
    sizes = torch.randn(rows, 1, generator=generator).exp() * (2 * torch.randn(columns, generator=generator)).exp()
    return [sizes * (torch.randn(rows, columns, generator=generator) + 0.5) for _ in range(steps)]


def test_every_float32_is_a_bfloat16_and_a_residue() -> None:
    generator = torch.Generator().manual_seed(0)
    master = torch.randn(4096, generator=generator) * torch.randn(4096, generator=generator).exp()
    ties = torch.tensor([1.0, -1.0]).view(torch.int32).add(0x8000).view(torch.float32)  # between two bfloat16
    edges = torch.tensor([0.0, -0.0, 1.0, 1 - 2**-24, 3e38, 1e-40])
    for values in (master, ties, edges):
        high, low = halves(values)
        assert (high.dtype, low.dtype) == (torch.bfloat16, torch.int16)
        assert torch.equal(joined(high, low).view(torch.int32), values.view(torch.int32))
    assert torch.equal(halves(master)[0], master.bfloat16())
    assert torch.equal(halves(ties)[0].float(), torch.tensor([1.0, -1.0]) * (1 + 2**-7))


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_codes_are_near_and_keep_the_small_beside_the_large(dtype: torch.dtype) -> None:
    values = torch.randn(6, 96, generator=torch.Generator().manual_seed(0)).exp_()
    values[0, :48] *= 1e6
    values = values * torch.randn(6, 96).sign() if dtype == torch.int8 else values
    codes = eight_bit.zeros(6, 96, dtype, values.device)
    assert codes.scales.shape == (6, 1) and not eight_bit.read(codes).any()
    eight_bit.write(codes, values)
    largest = eight_bit.LARGEST[dtype]
    for row, found in zip(values.tolist(), eight_bit.read(codes).tolist(), strict=True):
        scale = max(abs(x) for x in row)
        for x, y in zip(row, found, strict=True):
            root = math.sqrt(abs(y) / scale) * largest
            assert root == pytest.approx(round(root), abs=1e-3)
            assert abs(root - math.sqrt(abs(x) / scale) * largest) <= 0.501 or (
                dtype == torch.uint8 and round(root) == 1
            )
            assert x * y >= 0


def test_a_block_has_its_own_scale_and_divides_its_row() -> None:
    assert [eight_bit.block_columns(columns) for columns in (8, 128, 288, 1280, 262)] == [8, 128, 96, 128, 2]
    values = torch.ones(1, 256)
    values[0, :128] = 1e9
    codes = eight_bit.zeros(1, 256, torch.int8, values.device)
    eight_bit.write(codes, values)
    torch.testing.assert_close(eight_bit.read(codes), values)


def test_a_second_moment_is_never_nothing_where_there_was_a_gradient() -> None:
    codes = eight_bit.zeros(1, 8, torch.uint8, torch.device("cpu"))
    eight_bit.write(codes, torch.tensor([[1e-30, 0, 1, 1, 1, 1, 1, 1]]))
    assert eight_bit.read(codes).min() == pytest.approx(1 / 255**2)


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(
    ("dtype", "rounding"),
    [(torch.bfloat16, None), (torch.float16, None), (torch.float32, None), (torch.bfloat16, as_int8)],
)
def test_lean_steps_are_nearly_those_of_adam(
    monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, rounding: Rounding | None, dense: bool
) -> None:
    monkeypatch.setitem(optimiser.CHUNK, "cpu", 5 * 64)  # so that the last chunk is another size
    weight = torch.randn(24, 64).to(dtype) if dense else pruned(dtype=dtype)
    mask = torch.ones_like(weight, dtype=torch.bool) if dense else weight != 0
    start = weight.clone()
    oracle = nn.Parameter(weight.double())
    adam = torch.optim.Adam([oracle], lr=0.01, betas=BETAS)
    lean = Lean(weight, dtype, rounding)
    for slope in slopes(30):
        oracle.grad = slope.double() * mask
        adam.step()
        lean.step(weight, slope * 4, scale=4.0, rate=0.01)
    moved, wanted = (weight.double() - start.double())[mask], (oracle.detach() - start.double())[mask]
    assert float(nn.functional.cosine_similarity(moved, wanted, dim=0)) > (0.99 if rounding is None else 0.98)
    assert float((moved - wanted).abs().mean()) < 0.1 * float(wanted.abs().mean()) or rounding is not None
    assert dense or (not weight[~mask].any() and pattern.first_violation(weight) is None)
    if rounding:
        assert torch.equal(weight, rounding(weight))


@pytest.mark.parametrize("make", [Full, Lean])
def test_what_is_not_2_of_4_is_trained_whole(make: type[Full | Lean]) -> None:
    weight = torch.randn(8, 16)
    weight[0, 0] = 0
    before = weight.clone()
    make(weight, torch.float32, None).step(weight, torch.ones(8, 16), 1.0, 0.01)
    torch.testing.assert_close(weight, before - 0.01)


@pytest.mark.parametrize("make", [Full, Lean])
@pytest.mark.parametrize("rounding", [None, as_int8])
def test_a_state_goes_on_to_the_same_bits(make: type[Full | Lean], rounding: Rounding | None) -> None:
    weight, again = pruned(), pruned()
    first, second = (make(each, torch.bfloat16, rounding) for each in (weight, again))
    gradients = slopes(6)
    for slope in gradients[:3]:
        first.step(weight, slope, 1.0, 0.01)
    second.restore(again, {name: tensor.clone() for name, tensor in first.state(weight).items()})
    assert torch.equal(weight, again)
    for slope in gradients[3:]:
        first.step(weight, slope, 1.0, 0.01)
        second.step(again, slope, 1.0, 0.01)
    assert torch.equal(weight, again) and not torch.equal(weight, pruned())


@pytest.mark.parametrize("make", [Full, Lean])
def test_kept_weights_come_back(make: type[Full | Lean]) -> None:
    weight = pruned()
    before = weight.clone()
    state = make(weight, torch.bfloat16, None)
    kept = state.copy(weight).clone()
    assert kept.numel() == weight.numel() // 2
    state.step(weight, slopes(1)[0], 1.0, 0.5)
    assert not torch.equal(weight, before)
    state.put(weight, kept)
    assert torch.equal(weight, before)


def held(state: Full | Lean) -> int:
    """The bytes of all tensors that an optimiser holds."""
    found = [value for value in vars(state).values() if isinstance(value, Tensor)]
    found += [part for moment in state._moments for part in (moment if isinstance(moment, tuple) else (moment,))]
    return sum(tensor.nbytes for tensor in found)


def test_a_kept_weight_takes_what_the_docstring_says() -> None:
    kept = 256 * 512 // 2
    for make, rounding, expected in ((Full, None, 16), (Lean, None, 4.3), (Lean, as_int8, 6.3)):
        assert held(make(pruned(256, 512), torch.bfloat16, rounding)) / kept == pytest.approx(expected, abs=0.02)  # type: ignore[operator]


@pytest.mark.parametrize(("lean", "values"), [(False, "model"), (True, "model"), (True, "int8")])
def test_what_a_model_takes_is_not_more_than_is_planned(lean: bool, values: Values) -> None:
    parts = anatomy.dissect(tiny("llama", hidden_size=128, intermediate_size=384).to(torch.bfloat16))
    for linear in parts.linears.values():
        linear.weight.copy_(magnitude(linear.weight.float()))
    kept = KeptWeights(parts.linears.values(), torch.bfloat16, 0.01, as_int8 if values == "int8" else None, lean)
    asked = PruneConfig(lean=lean, values=values)
    planned = training_bytes.of_the_model(parts, asked)["masters, moments and places"]
    found = sum(held(each) for each in kept._optimisers)  # type: ignore[arg-type]
    assert 0.95 * planned < found < 1.001 * planned
    assert sum(tensor.nbytes for tensor in kept.state().values()) <= 1.01 * training_bytes.saved(parts, asked)


def test_no_gradient_outlives_its_step() -> None:
    linears = [nn.Linear(16, 16, bias=False).requires_grad_(False) for _ in range(3)]
    for linear in linears:
        linear.weight.copy_(magnitude(linear.weight))
    kept, seen = KeptWeights(linears, torch.float32, 0.01), list[int]()
    for optimiser_, linear in zip(kept._optimisers, linears, strict=True):
        real = optimiser_.step

        def watch(*args: object, real: object = real) -> None:
            seen.append(sum(each.weight.grad is not None for each in linears))
            real(*args)  # type: ignore[operator]

        optimiser_.step = watch  # type: ignore[method-assign]
        del linear
    learn(kept, lambda part: nn.Sequential(*linears)(torch.randn(4, 16)).square().mean(), 0, 1.0)
    assert seen == [0, 0, 0] and all(linear.weight.grad is None for linear in linears)


def test_a_gradient_that_overflows_leaves_the_others_with_one_step_each() -> None:
    """The second linear, whose gradient comes first, moves at once; the first one when the scale is small enough."""
    first, second = (nn.Linear(16, 16, bias=False).half().requires_grad_(False) for _ in range(2))
    for linear in (first, second):
        linear.weight.copy_(magnitude(linear.weight.float()))
    kept, x = KeptWeights([first, second], torch.float16, 0.01), torch.ones(1, 16, dtype=torch.float16)
    looks = list[int]()

    def loss(part: int) -> Tensor:
        looks.append(part)
        hidden = first(x * 64)  # whose gradients are 64 times as large
        return second(hidden * 2**-6).float().sum()

    learn(kept, loss, 0, 1.0)
    state = kept.state()
    assert len(looks) > 1 and float(state["scale"]) < 2.0**16
    assert [float(state[f"steps.{n}"]) for n in range(2)] == [1, 1]
