"""The compiled kernels against float64 arithmetic on the unpacked weight, on every instruction set of this machine."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from twofour.prune.errors import InputError
from twofour.prune.format.dense_int8 import DenseInt8, to_dense_int8
from twofour.prune.format.packed import Packed, pack
from twofour.prune.format.pattern import mask_from_scores
from twofour.prune.format.rounding import to_int8
from twofour.serve.kernels import cpu
from twofour.serve.kernels.cpu import panels
from twofour.serve.kernels.cpu.extension import Extension, loaded
from twofour.serve.kernels.cpu.weight import CpuWeight, Kind

ISAS = ("avx512bf16", "avx512", "avx2")
SHAPES = ((8, 64), (9, 68), (1, 4), (17, 100), (24, 4164), (33, 5188), (40, 576))  # rows, columns
SPARSE_KINDS = ("bf16", "int8", "int8 x64")
EXPANDED_KINDS = (*SPARSE_KINDS, "dense int8")
KINDS = (*EXPANDED_KINDS, "dense")
EPSILON = {torch.bfloat16: 2.0**-8, torch.float32: 1e-6}  # of the result; bfloat16 is rounded once
QUANTUM = 1 / 32512  # int8 weights round x to multiples of this share of its largest magnitude


@pytest.fixture(params=ISAS)
def extension(request: pytest.FixtureRequest) -> Iterator[Extension]:
    """The extension, held to one instruction set."""
    if (extension := loaded()) is None:
        pytest.skip("the C extension is not built")
    if request.param not in extension.isas():
        pytest.skip(f"this machine has no {request.param}")
    before = extension.isa()
    extension.force(request.param)
    yield extension
    extension.force(before)


def sparse_weight(rows: int, columns: int, generator: torch.Generator) -> Tensor:
    weight = torch.randn(rows, columns, generator=generator)
    return weight * mask_from_scores(weight.abs())


def packed_weight(kind: str, rows: int, columns: int, generator: torch.Generator) -> Packed:
    packed = pack(sparse_weight(rows, columns, generator).bfloat16())
    return packed if kind == "bf16" else to_int8(packed, 64 if kind == "int8 x64" else 0)


def both_forms(kind: str, rows: int, columns: int, generator: torch.Generator) -> tuple[CpuWeight, Tensor]:
    """A weight for the kernel, and the same as float64."""
    if kind == "dense":
        weight = sparse_weight(rows, columns, generator).bfloat16()
        return CpuWeight.from_dense(weight), weight.double()
    if kind == "dense int8":
        rounded = to_dense_int8(torch.randn(rows, columns, generator=generator).bfloat16())
        return CpuWeight.from_dense_int8(rounded), rounded.unpack().double()
    packed = packed_weight(kind, rows, columns, generator)
    return CpuWeight.from_packed(packed), packed.unpack().double()


def allowed(x: Tensor, dense: Tensor, expected: Tensor, kind: str) -> Tensor:
    """The error that rounding may make: of the result, of the sum, and with int8 of x."""
    magnitudes = x.double().abs() @ dense.abs().T
    error = expected.abs() * EPSILON[x.dtype] + magnitudes * 1e-6 + 1e-30
    if "int8" in kind:
        error = error + x.double().abs().amax(-1, keepdim=True) * QUANTUM * dense.abs().sum(1)
    return error


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_product_equals_the_unpacked_weights(extension: Extension, kind: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for rows, columns in SHAPES:
        weight, dense = both_forms(kind, rows, columns, generator)
        for tokens in (1, 2, 3, 4, 5, 7, 11):
            x = torch.randn(tokens, columns, generator=generator).to(dtype)
            bias = torch.randn(rows, generator=generator).to(dtype) if tokens % 2 else None
            y = cpu.linear(x, weight, bias)
            expected = x.double() @ dense.T + (0 if bias is None else bias.double())
            assert y.dtype == dtype and y.shape == (tokens, rows)
            assert ((y.double() - expected).abs() <= allowed(x, dense, expected, kind)).all(), (rows, columns)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", KINDS)
def test_a_token_does_not_depend_on_its_neighbours(extension: Extension, kind: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(1)
    for rows, columns in ((40, 576), (72, 5184)):  # the second is wide enough to take several row blocks at once
        weight, _ = both_forms(kind, rows, columns, generator)
        x = torch.randn(37, columns, generator=generator).to(dtype)
        together = cpu.linear(x, weight)
        assert torch.equal(together, torch.cat([cpu.linear(row, weight) for row in x.split(1)]))
        for count in (2, 3, 4, 7):
            assert torch.equal(together[5 : 5 + count], cpu.linear(x[5 : 5 + count], weight))


@pytest.mark.parametrize("kind", KINDS)
def test_threads_do_not_change_the_result(extension: Extension, kind: str) -> None:
    generator = torch.Generator().manual_seed(2)
    weight, _ = both_forms(kind, 520, 1024, generator)
    x = torch.randn(3, 1024, generator=generator).bfloat16()
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        results.append(cpu.linear(x, weight))
    torch.set_num_threads(before)
    assert torch.equal(*results)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", EXPANDED_KINDS)
def test_expanding_gives_the_unpacked_weight(extension: Extension, kind: str, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    for rows, columns in SHAPES:
        weight, dense = both_forms(kind, rows, columns, generator)
        for first, end in ((0, rows), (rows // 8 // 2 * 8, rows)):
            out = torch.full((end - first, columns), torch.nan, dtype=dtype)
            panels.expand(weight, first, end, out)
            assert torch.equal(out, dense[first:end].float().to(dtype)), (rows, columns, first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("kind", EXPANDED_KINDS)
def test_many_tokens_go_through_panels(
    extension: Extension, kind: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(panels, "PANEL_BYTES", 64 * 1024)  # several panels, the last one ragged
    generator = torch.Generator().manual_seed(4)
    weight, dense = both_forms(kind, 203, 516, generator)
    x, bias = torch.randn(2, 7, 516, generator=generator).to(dtype), torch.randn(203, generator=generator).to(dtype)
    y = cpu.linear(x, weight, bias, crossover=13)
    assert torch.allclose(y, functional.linear(x, dense.to(dtype), bias), rtol=2e-2, atol=1e-2)
    assert torch.equal(cpu.linear(x, weight, bias, crossover=14), cpu.linear(x, weight, bias))


@pytest.mark.parametrize("kind", EXPANDED_KINDS)
def test_thousands_of_tokens(extension: Extension, kind: str) -> None:
    """By the kernel and by panels, the last token and the last row like the others."""
    generator = torch.Generator().manual_seed(8)
    weight, dense = both_forms(kind, 9, 68, generator)
    x = torch.randn(5000, 68, generator=generator).bfloat16()
    error = allowed(x, dense, x.double() @ dense.T, kind)
    assert ((cpu.linear(x, weight, crossover=5000).double() - x.double() @ dense.T).abs() <= error).all()
    rounded = dense.bfloat16().double()  # panels hold the weight in the dtype of x
    error = allowed(x, rounded, x.double() @ rounded.T, kind)
    assert ((cpu.linear(x, weight, crossover=4999).double() - x.double() @ rounded.T).abs() <= error).all()


def test_int8_sums_do_not_overflow(extension: Extension) -> None:
    """The largest integers in a very wide row."""
    columns = 4 * 33000
    values = torch.full((8, columns // 2), 127, dtype=torch.int8)
    values[1] = -128
    positions = torch.full((8, columns // 8), 0x44, dtype=torch.uint8)
    weight = CpuWeight.from_packed(Packed(values, positions, torch.ones(8, 1)))
    y = cpu.linear(torch.ones(1, columns), weight)
    assert torch.allclose(y[0, :2], torch.tensor([127.0, -128.0]) * (columns // 2), rtol=1e-4)


def test_dense_int8_sums_do_not_overflow(extension: Extension) -> None:
    values = torch.full((8, 64), -128, dtype=torch.int8)
    weight = CpuWeight.from_dense_int8(DenseInt8(values, torch.ones(8, 1)))
    assert torch.allclose(cpu.linear(torch.ones(1, 64), weight), torch.full((1, 8), -128.0 * 64), rtol=1e-6)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "int8" in kind])
def test_int8_gives_the_same_bits_on_every_instruction_set(kind: str) -> None:
    if (extension := loaded()) is None:
        pytest.skip("the C extension is not built")
    generator = torch.Generator().manual_seed(12)
    weight, _ = both_forms(kind, 41, 1300, generator)
    x, before, found = torch.randn(7, 1300, generator=generator), extension.isa(), []
    for isa in extension.isas():
        extension.force(isa)
        found.append(cpu.linear(x, weight))
    extension.force(before)
    assert all(torch.equal(each, found[0]) for each in found)


@pytest.mark.parametrize("kind", KINDS)
def test_nan_and_infinity_stay_visible_and_in_their_token(extension: Extension, kind: str) -> None:
    generator = torch.Generator().manual_seed(5)
    weight, dense = both_forms(kind, 16, 128, generator)
    for bad in (torch.nan, torch.inf, -torch.inf):
        x = torch.randn(5, 128, generator=generator).bfloat16()
        clean = cpu.linear(x, weight)
        x[2, dense.abs().sum(0).argmax()] = bad
        y = cpu.linear(x, weight)
        assert not y[2].isfinite().all()
        assert torch.equal(y[[0, 1, 3, 4]], clean[[0, 1, 3, 4]])


def test_a_value_that_is_nan_stays_in_its_row(extension: Extension) -> None:
    generator = torch.Generator().manual_seed(11)
    packed = packed_weight("bf16", 24, 128, generator)
    packed.values[7, 3] = torch.nan
    for crossover in (0, 256):
        y = cpu.linear(torch.randn(5, 128, generator=generator), CpuWeight.from_packed(packed), crossover=crossover)
        assert y[:, 7].isnan().all() and y[:, [*range(7), *range(8, 24)]].isfinite().all()


def test_zero_activations_give_the_bias(extension: Extension) -> None:
    for kind in KINDS:
        weight, _ = both_forms(kind, 24, 192, torch.Generator().manual_seed(6))
        bias = torch.randn(24).bfloat16()
        assert torch.equal(cpu.linear(torch.zeros(2, 192).bfloat16(), weight, bias), bias.expand(2, 24))


def test_bytes_for_each_dense_weight() -> None:
    if loaded() is None:
        pytest.skip("the C extension is not built")
    generator = torch.Generator().manual_seed(7)
    expected = {"bf16": 1.125, "int8": 0.625, "int8 x64": 0.6875, "dense int8": 1.0625, "dense": 2.0}
    per_weight = {kind: both_forms(kind, 256, 4096, generator)[0].nbytes / (256 * 4096) for kind in KINDS}
    assert per_weight == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", SPARSE_KINDS)
def test_a_weight_comes_back_bit_for_bit(kind: str, threads: int) -> None:
    if loaded() is None:
        pytest.skip("the C extension is not built")
    generator = torch.Generator().manual_seed(9)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    for rows, columns in SHAPES:
        packed = packed_weight(kind, rows, columns, generator)
        again = CpuWeight.from_packed(packed).to_packed()
        assert again.scale_columns == packed.scale_columns
        assert again.tensors().keys() == packed.tensors().keys()
        for part, tensor in again.tensors().items():
            assert torch.equal(tensor.view(torch.uint8), packed.tensors()[part].contiguous().view(torch.uint8)), part
    torch.set_num_threads(before)


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_a_dense_int8_weight_comes_back_bit_for_bit(rows: int, columns: int) -> None:
    if loaded() is None:
        pytest.skip("the C extension is not built")
    values = torch.randint(-128, 128, (rows, columns), dtype=torch.int8)
    packed = DenseInt8(values, torch.rand(rows, -(-columns // 64)))
    again = CpuWeight.from_dense_int8(packed).to_dense_int8()
    assert torch.equal(again.values, values) and torch.equal(again.scales, packed.scales)


def test_what_is_no_dense_int8_weight_does_not_come_back() -> None:
    if loaded() is None:
        pytest.skip("the C extension is not built")
    weight, _ = both_forms("dense", 8, 64, torch.Generator())
    with pytest.raises(InputError, match="from_dense_int8"):
        weight.to_dense_int8()


def test_every_bit_pattern_comes_back() -> None:
    """Also what `pack` never makes: NaN, -0.0, infinity, -128, positions of empty slots."""
    if loaded() is None:
        pytest.skip("the C extension is not built")
    generator = torch.Generator().manual_seed(10)
    valid = torch.tensor([4, 8, 9, 12, 13, 14], dtype=torch.uint8)
    low, high = (valid[torch.randint(6, (13, 13), generator=generator)] for _ in range(2))
    positions = low | high << 4
    positions[:, 12] &= 15  # 100 columns: 25 groups
    values = torch.randint(0, 256, (13, 50), dtype=torch.uint8, generator=generator).view(torch.int8)
    packed = Packed(values, positions, torch.rand(13, 1, generator=generator))
    again = CpuWeight.from_packed(packed).to_packed()
    assert torch.equal(again.values, values) and torch.equal(again.positions, positions)
    words = torch.randint(-(2**15), 2**15, (13, 50), dtype=torch.int16, generator=generator)
    again = CpuWeight.from_packed(Packed(words.view(torch.bfloat16), positions)).to_packed()
    assert torch.equal(again.values.view(torch.int16), words) and torch.equal(again.positions, positions)


def test_a_dense_weight_shares_memory_where_it_can() -> None:
    if loaded() is None:
        pytest.skip("the C extension is not built")
    weight = torch.randn(24, 128).bfloat16()
    assert CpuWeight.from_dense(weight).data.data_ptr() == weight.data_ptr()
    assert CpuWeight.from_dense(weight[:, :100]).kind is Kind.DENSE_BF16
