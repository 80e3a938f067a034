"""The Triton kernels where they belong: against F.linear, for one order of sums, in a graph, compiled."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twofour.prune import pattern
from twofour.prune.packed import Packed, pack
from twofour.serve.kernels import triton_decode
from twofour.serve.kernels.triton_decode import TritonWeight, linear, prepare

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not triton_decode.available().startswith("sm_"), reason=f"Triton kernels: {triton_decode.available()}"
    ),
]
SHAPES = [(6144, 4096), (4096, 14336), (4096, 4096), (576, 576), (130, 1028), (1, 4)]
TOKENS = [1, 2, 8, 15, 16, 17, 32, 33, 64, 65, 96, 128]


def packed_weight(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> Packed:
    weight = torch.randn(rows, columns, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    return pack((weight * pattern.mask_from_scores(weight.abs())).to(dtype))


def inputs(tokens: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(1)
    return torch.randn(tokens, columns, device="cuda", generator=generator).to(dtype)


def assert_product(y: Tensor, x: Tensor, packed: Packed, bias: Tensor | None) -> None:
    weight, wide = packed.unpack().double(), None if bias is None else bias.double()
    exact = F.linear(x.double(), weight, wide)
    magnitude = F.linear(x.double().abs(), weight.abs(), None if wide is None else wide.abs())
    # float32 sums on tensor cores, which truncate what they align: a few units per step of 16
    allowed = torch.finfo(y.dtype).eps * exact.abs() + x.shape[-1] * 2.0**-23 * magnitude
    assert bool(((y.double() - exact).abs() <= allowed).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_the_product_is_that_of_the_unpacked_weight(rows: int, columns: int, dtype: torch.dtype) -> None:
    packed = packed_weight(rows, columns, dtype)
    weight, bias = TritonWeight.from_packed(packed), inputs(1, rows, dtype)[0]
    for tokens in TOKENS:
        x = inputs(tokens, columns, dtype)
        assert_product(linear(x, weight, bias, crossover=128), x, packed, bias)
        assert not weight.arrivals.any()


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_a_token_is_the_same_whatever_is_beside_it(rows: int, columns: int) -> None:
    weight, x = TritonWeight.from_packed(packed_weight(rows, columns)), inputs(128, columns)
    alone = linear(x[:1], weight)
    for tokens in TOKENS:
        assert torch.equal(linear(x[:tokens], weight, crossover=128)[:1], alone)


def test_splits_arriving_in_any_order_add_up_to_the_same_bits() -> None:
    weight, x = TritonWeight.from_packed(packed_weight(4096, 14336)), inputs(16, 14336)
    assert weight.splits > 1
    first = linear(x, weight)
    assert all(torch.equal(linear(x, weight), first) for _ in range(200))


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_the_expansion_is_the_dense_weight_bit_for_bit(rows: int, columns: int) -> None:
    packed = packed_weight(rows, columns)
    weight = TritonWeight.from_packed(packed)
    assert torch.equal(triton_decode._expand(weight.values, weight.codes, columns), packed.unpack())


@pytest.mark.parametrize("tokens", [1, 20, 64, 200])
def test_a_captured_graph_replays_on_new_inputs(tokens: int) -> None:
    packed = packed_weight(4096, 4096)
    weight, x = TritonWeight.from_packed(packed), inputs(tokens, 4096)
    prepare(weight)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = linear(x, weight)
    for scale in (1.0, -2.0):
        x.copy_(inputs(tokens, 4096) * scale)
        graph.replay()
        assert torch.equal(y, linear(x, weight))


def test_one_compiled_function_serves_any_number_of_tokens() -> None:
    weight = TritonWeight.from_packed(packed_weight(576, 576))
    compiled = torch.compile(lambda x: linear(x, weight) + 1, fullgraph=True, dynamic=True)
    with torch.inference_mode():
        for tokens in (3, 20, 200):
            x = inputs(tokens, 576)
            assert torch.equal(compiled(x), linear(x, weight) + 1)


def test_misaligned_activations_give_the_same_bits() -> None:
    weight, x = TritonWeight.from_packed(packed_weight(576, 576)), inputs(17, 576)
    shifted = torch.empty(x.numel() + 1, dtype=x.dtype, device="cuda")[1:].view_as(x).copy_(x)
    assert torch.equal(linear(shifted, weight), linear(x, weight))
