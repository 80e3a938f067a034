"""The Triton kernels in Triton's interpreter against the unpacked weight and F.linear, and what is refused."""

import importlib
import random
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twofour.prune.errors import InputError
from twofour.prune.format import pattern
from twofour.prune.format.packed import Packed, pack
from twofour.serve.kernels.triton import decode as triton_decode
from twofour.serve.kernels.triton import layout as triton_layout
from twofour.serve.kernels.triton import plan as triton_plan
from twofour.serve.kernels.triton.decode import TritonWeight, linear
from twofour.serve.kernels.triton.kernel import TritonKernel

DTYPES = [torch.bfloat16, torch.float16]


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Make the kernels anew as functions of the interpreter, and as they were after."""
    pytest.importorskip("triton", reason="triton is not installed (on Linux: pip install triton; no GPU is needed)")
    kernels = importlib.import_module("twofour.serve.kernels.triton.programs")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    importlib.reload(kernels)
    assert kernels.INTERPRETED
    yield
    monkeypatch.undo()
    importlib.reload(kernels)


@pytest.fixture
def fixed_order_dots(monkeypatch: pytest.MonkeyPatch) -> None:
    """Add up every dot of the interpreter input after input: the order of numpy's depends on the shape."""
    from triton.runtime import interpreter

    def create_dot(self: Any, a: Any, b: Any, sums: Any, *options: Any) -> Any:
        total = sums.data.copy()
        for column, row in zip(a.data.T, b.data, strict=True):
            total += column[:, None] * row[None, :]
        return interpreter.TensorHandle(total, sums.dtype.scalar)

    monkeypatch.setattr(interpreter.InterpreterBuilder, "create_dot", create_dot)


def keep_partials(monkeypatch: pytest.MonkeyPatch) -> list[Tensor]:  # of every call, float32 [splits, rows, tokens]
    kept: list[Tensor] = []
    new_empty = Tensor.new_empty

    def keeping(x: Tensor, *shape: Any, **options: Any) -> Tensor:
        made = new_empty(x, *shape, **options)
        kept.extend([made] if made.dtype == torch.float32 else [])
        return made

    monkeypatch.setattr(Tensor, "new_empty", keeping)
    return kept


def add_up(partials: Tensor, bias: Tensor) -> Tensor:  # [rows, tokens]
    total = torch.zeros_like(partials[0])
    for partial in partials:
        total += partial
    return total + bias.float()[:, None]


def reverse_the_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the last split of a tile run first, the first one last."""
    from triton.runtime.interpreter import interpreter_builder

    set_grid = interpreter_builder.set_grid_idx
    monkeypatch.setattr(
        interpreter_builder, "set_grid_idx", lambda x, y, z: set_grid(x, y, interpreter_builder.grid_dim[2] - 1 - z)
    )


def packed_weight(rows: int, columns: int, dtype: torch.dtype, seed: int = 0) -> Packed:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))
    return pack((weight * pattern.mask_from_scores(weight.abs())).to(dtype))


def inputs(tokens: int, columns: int, dtype: torch.dtype, seed: int = 1) -> Tensor:
    return torch.randn(tokens, columns, generator=torch.Generator().manual_seed(seed)).to(dtype)


def assert_product(y: Tensor, x: Tensor, packed: Packed, bias: Tensor | None) -> None:
    """Float32 sums, rounded once: half a unit of the dtype, and a float32 unit for every addition."""
    weight, wide = packed.unpack().double(), None if bias is None else bias.double()
    exact = F.linear(x.double(), weight, wide)
    magnitude = F.linear(x.double().abs(), weight.abs(), None if wide is None else wide.abs())
    allowed = torch.finfo(y.dtype).eps * exact.abs() + x.shape[-1] * 2.0**-24 * magnitude
    assert y.dtype == x.dtype
    assert bool(((y.double() - exact).abs() <= allowed).all())


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize(
    ("rows", "columns", "tokens"),
    [
        (64, 512, 1),  # whole tiles
        (1, 4, 1),  # the smallest weight
        (65, 576, 16),  # a ragged row tile, a ragged last step
        (40, 100, 17),  # padded columns, planes
        (130, 516, 33),  # two rows tiles of 128, padded columns
        (66, 1024, 96),  # two token tiles
        (70, 4608, 5),  # splits, the last ones past the end
        (64, 2048, 40),  # splits and planes
    ],
)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_product_is_that_of_the_unpacked_weight(rows: int, columns: int, tokens: int, dtype: torch.dtype) -> None:
    packed, x = packed_weight(rows, columns, dtype), inputs(tokens, columns, dtype)
    weight, bias = TritonWeight.from_packed(packed), inputs(1, rows, dtype)[0]
    assert_product(linear(x, weight, bias), x, packed, bias)
    assert not weight.arrivals.any()


@pytest.mark.usefixtures("interpreter")
def test_random_shapes_on_every_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    source = random.Random(0)
    for seed in range(20):
        rows, columns, tokens = source.randint(1, 100), 4 * source.randint(1, 150), source.randint(1, 96)
        monkeypatch.setattr(triton_layout, "_INTERPRETED", (132, source.choice([(8, 0), (9, 0)])))
        dtype = source.choice(DTYPES)
        packed, x = packed_weight(rows, columns, dtype, seed), inputs(tokens, columns, dtype, seed)
        assert_product(linear(x, TritonWeight.from_packed(packed)), x, packed, None)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("count", [1, 2, 3, 4, 8])
def test_any_number_of_splits_adds_up_and_leaves_the_counters_at_zero(count: int) -> None:
    packed, x = packed_weight(70, 1088, torch.bfloat16), inputs(33, 1088, torch.bfloat16)
    weight = replace(TritonWeight.from_packed(packed), splits=count)
    for _ in range(2):
        assert_product(linear(x, weight), x, packed, None)
        assert not weight.arrivals.any()


@pytest.mark.usefixtures("interpreter", "fixed_order_dots")
def test_splits_are_added_in_their_order_whoever_arrives_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit the partial sums p0, p1, p2, p3 added from the left, and not what another order gives.

    In float16: the interpreter rounds to bfloat16 towards zero.
    """
    packed, x = packed_weight(40, 2048, torch.float16), inputs(5, 2048, torch.float16)
    bias = inputs(1, 40, torch.float16)[0]
    weight, kept = replace(TritonWeight.from_packed(packed), splits=4), keep_partials(monkeypatch)
    y = linear(x, weight, bias)
    in_order, reversed_order = (add_up(order, bias) for order in (kept[0], kept[0].flip(0)))
    assert torch.equal(y, in_order.half().t()) and not torch.equal(in_order, reversed_order)
    reverse_the_splits(monkeypatch)
    assert torch.equal(linear(x, weight, bias), y) and torch.equal(kept[1], kept[0])


@pytest.mark.usefixtures("interpreter", "fixed_order_dots")
@pytest.mark.parametrize("capability", [(8, 0), (9, 0)])
@pytest.mark.parametrize(("rows", "columns"), [(20, 1024), (70, 580)])
def test_a_token_is_the_same_whatever_is_beside_it(
    rows: int, columns: int, capability: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over every tile: the order of the steps and of the products in them is the kernel's own, and one."""
    monkeypatch.setattr(triton_layout, "_INTERPRETED", (132, capability))
    weight, x = (
        TritonWeight.from_packed(packed_weight(rows, columns, torch.bfloat16)),
        inputs(40, columns, torch.bfloat16),
    )
    alone = linear(x[-1:], weight)
    for tokens in (2, 17, 40):
        assert torch.equal(linear(x[-tokens:], weight)[-1:], alone)


@pytest.mark.usefixtures("interpreter")
@pytest.mark.parametrize("columns", [64, 132, 1088])
def test_above_the_crossover_the_weight_is_expanded_bit_for_bit(columns: int) -> None:
    packed = packed_weight(35, columns, torch.bfloat16)
    x, weight = inputs(9, columns, torch.bfloat16), TritonWeight.from_packed(packed)
    bias = inputs(1, 35, torch.bfloat16)[0]
    assert torch.equal(linear(x, weight, bias, crossover=8), F.linear(x, packed.unpack(), bias))


@pytest.mark.usefixtures("interpreter")
def test_more_tokens_than_counters_are_expanded_whatever_crossover_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(triton_decode, "decode", None)
    packed = packed_weight(8, 64, torch.float16)
    x = inputs(triton_plan.MAX_TOKENS + 1, 64, torch.float16)
    y = linear(x, TritonWeight.from_packed(packed), crossover=10**9)
    assert torch.equal(y, F.linear(x, packed.unpack()))


@pytest.mark.usefixtures("interpreter")
def test_leading_dimensions_strides_and_no_tokens() -> None:
    packed = packed_weight(12, 64, torch.bfloat16)
    weight, x = TritonWeight.from_packed(packed), inputs(12, 129, torch.bfloat16)[::2, 1::2]
    y = linear(x.view(2, 3, 64), weight)
    assert y.shape == (2, 3, 12)
    assert_product(y.view(6, 12), x, packed, None)
    assert linear(x.new_empty(2, 0, 64), weight).shape == (2, 0, 12)


@pytest.mark.usefixtures("interpreter")
def test_infinity_and_nan_stay_with_their_token() -> None:
    packed, x = packed_weight(8, 100, torch.bfloat16), inputs(3, 100, torch.bfloat16)
    clean = linear(x, TritonWeight.from_packed(packed))
    x[1, 99], x[1, 3] = float("inf"), float("nan")
    with pytest.warns(RuntimeWarning, match="invalid value"):  # from the interpreter's numpy
        y = linear(x, TritonWeight.from_packed(packed))
    assert bool(y[1].isnan().all())
    assert torch.equal(y[::2], clean[::2])


@pytest.mark.usefixtures("interpreter")
def test_one_compiled_graph_serves_any_number_of_tokens() -> None:
    packed = packed_weight(16, 64, torch.float16)
    weight = TritonWeight.from_packed(packed)
    compiled = torch.compile(lambda x: linear(x, weight) + 1, fullgraph=True, backend="aot_eager", dynamic=True)
    with torch.inference_mode():
        for tokens in (3, 20):
            x = inputs(tokens, 64, torch.float16)
            assert torch.equal(compiled(x), linear(x, weight) + 1)


@pytest.mark.usefixtures("interpreter")
def test_the_operator_passes_torchs_own_checks() -> None:
    weight = TritonWeight.from_packed(packed_weight(16, 64, torch.float16))
    tensors = (inputs(3, 64, torch.float16), weight.values, weight.codes, weight.arrivals, None)
    torch.library.opcheck(torch.ops.twofour.linear24_triton.default, (*tensors, 64, 1, 96))


@pytest.mark.usefixtures("interpreter")
def test_prepare_launches_every_tile_and_the_expansion(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    tile = triton_plan.tile
    monkeypatch.setattr(
        triton_plan, "tile", lambda tokens, on: seen.append(tile(tokens, on).tokens) or tile(tokens, on)
    )
    expand = triton_decode.expand
    monkeypatch.setattr(triton_decode, "expand", lambda *weight: seen.append(0) or expand(*weight))
    kernel = TritonKernel.from_packed(packed_weight(8, 64, torch.float16))
    seen.clear()
    kernel.prepare(inputs(1, 8, torch.float16)[0])
    assert sorted(seen) == [0, 16, 32, 64]


def test_available_says_why_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert triton_decode.available() == "none: triton is not installed; pip install triton"


def test_cpu_tensors_are_refused_outside_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    weight = TritonWeight.from_packed(packed_weight(8, 64, torch.float16))
    for crossover in (96, 0):
        with pytest.raises(InputError, match="run on CUDA devices, got cpu"):
            linear(inputs(1, 64, torch.float16), weight, crossover=crossover)


@pytest.mark.parametrize(
    ("x", "bias", "message"),
    [
        (inputs(1, 64, torch.bfloat16), None, "takes torch.float16 of 64 columns, got torch.bfloat16"),
        (inputs(1, 60, torch.float16), None, r"of 64 columns, got torch.float16 \[1, 60\]"),
        (torch.tensor(1.0, dtype=torch.float16), None, r"of 64 columns, got torch.float16 \[\]"),
        (inputs(1, 64, torch.float16), torch.zeros(7, dtype=torch.float16), r"the bias must be torch.float16 \[8\]"),
        (inputs(1, 64, torch.float16), torch.zeros(8), "the bias must be torch.float16"),
    ],
)
def test_activations_and_bias_that_do_not_fit_are_refused(x: Tensor, bias: Tensor | None, message: str) -> None:
    weight = TritonWeight.from_packed(packed_weight(8, 64, torch.float16))
    with pytest.raises(InputError, match=message):
        linear(x, weight, bias)


def test_tensors_on_two_devices_are_refused() -> None:
    weight, x = TritonWeight.from_packed(packed_weight(8, 64, torch.float16)), inputs(1, 64, torch.float16)
    elsewhere = torch.empty(8, dtype=torch.float16, device="meta")
    with pytest.raises(InputError, match="activations are on cpu, weight and bias elsewhere; move them together"):
        triton_decode._linear(x, weight.values, weight.codes, weight.arrivals, elsewhere, 64, 1, 96)


def test_tensors_that_no_weight_has_are_refused() -> None:
    weight, x = TritonWeight.from_packed(packed_weight(8, 64, torch.float16)), inputs(1, 64, torch.float16)
    for wrong in (
        replace(weight, codes=weight.codes[:, :2]),
        replace(weight, codes=weight.codes.int()),
        replace(weight, values=weight.values.t().contiguous().t()),
        replace(weight, arrivals=weight.arrivals[:1]),
        replace(weight, splits=0),
    ):
        with pytest.raises(InputError, match="no TritonWeight"):
            linear(x, wrong)
