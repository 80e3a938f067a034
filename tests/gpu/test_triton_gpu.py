"""The Triton kernels where they belong: against the oracle, for one order of sums, in a graph, compiled.

Every shape, dtype and tile is compiled once, by whichever test comes first: the shapes are few.
"""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twofour.prune.format import pattern
from twofour.prune.format.packed import Packed, pack
from twofour.serve.kernels.triton import decode as triton_decode
from twofour.serve.kernels.triton import scratch as triton_scratch
from twofour.serve.kernels.triton.kernel import TritonKernel, refusal

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not triton_decode.available().startswith("sm_"), reason=f"Triton kernels: {triton_decode.available()}"
    ),
]
BF16, FP16 = torch.bfloat16, torch.float16
SHAPES = [(4096, 4096), (4096, 14336), (576, 576), (130, 1028), (1, 4)]  # whole, split, ragged, padded, smallest
TOKENS = [1, 2, 8, 15, 16, 17, 32, 33, 64, 65, 96, 128]


def packed_weight(rows: int, columns: int, dtype: torch.dtype = BF16) -> Packed:
    weight = torch.randn(rows, columns, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    return pack((weight * pattern.mask_from_scores(weight.abs())).to(dtype))


def inputs(tokens: int, columns: int, dtype: torch.dtype = BF16, seed: int = 1) -> Tensor:
    generator = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(tokens, columns, device="cuda", generator=generator).to(dtype)


def kernel_and_bias(rows: int, columns: int, dtype: torch.dtype = BF16) -> tuple[TritonKernel, Tensor]:
    packed = packed_weight(rows, columns, dtype)
    assert refusal(packed) is None
    return replace(TritonKernel.from_packed(packed), crossover_tokens=128), inputs(1, rows, dtype)[0]


def assert_product(y: Tensor, x: Tensor, packed: Packed, bias: Tensor) -> None:
    weight = packed.unpack().double()
    exact = F.linear(x.double(), weight, bias.double())
    magnitude = F.linear(x.double().abs(), weight.abs(), bias.double().abs())
    # float32 sums on tensor cores, which truncate what they align: a few units per step of 16
    allowed = torch.finfo(y.dtype).eps * exact.abs() + x.shape[-1] * 2.0**-23 * magnitude
    assert y.dtype == x.dtype
    assert bool(((y.double() - exact).abs() <= allowed).all())


@pytest.mark.parametrize(
    ("rows", "columns", "dtype"), [*((*s, BF16) for s in SHAPES), (576, 576, FP16), (130, 1028, FP16)]
)
def test_the_product_is_that_of_the_unpacked_weight(rows: int, columns: int, dtype: torch.dtype) -> None:
    kernel, bias = kernel_and_bias(rows, columns, dtype)
    for tokens in (*TOKENS, 129, 300):
        x = inputs(tokens, columns, dtype)
        assert_product(kernel(x, bias), x, kernel.packed(), bias)
        assert not kernel.weight.arrivals.any()


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_a_token_is_the_same_whatever_is_beside_it(rows: int, columns: int) -> None:
    kernel, bias = kernel_and_bias(rows, columns)
    x = inputs(128, columns)
    alone = kernel(x[:1], bias)
    for tokens in TOKENS:
        assert torch.equal(kernel(x[:tokens], bias)[:1], alone), tokens


def test_splits_arriving_in_any_order_add_up_to_the_same_bits() -> None:
    kernel, bias = kernel_and_bias(4096, 14336)
    assert kernel.weight.splits > 1
    x = inputs(16, 14336)
    first = kernel(x, bias)
    assert all(torch.equal(kernel(x, bias), first) for _ in range(200))


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_the_expansion_and_the_stored_form_are_exact(rows: int, columns: int) -> None:
    packed = packed_weight(rows, columns)
    kernel = TritonKernel.from_packed(packed)
    dense = torch.full((rows, columns), torch.nan, dtype=BF16, device="cuda")
    triton_decode.expand(kernel.weight.values, kernel.weight.codes, dense)
    assert torch.equal(dense, packed.unpack())
    assert torch.equal(kernel.packed().values, packed.values)
    assert torch.equal(kernel.packed().positions, packed.positions)


@pytest.mark.parametrize("tokens", [1, 20, 64, 200])
def test_a_captured_graph_replays_on_changed_inputs(tokens: int) -> None:
    kernel, bias = kernel_and_bias(4096, 4096)
    kernel.prepare(bias)
    x = inputs(tokens, 4096)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = kernel(x, bias)
    for seed in (2, 3, 4):
        x.copy_(inputs(tokens, 4096, seed=seed))
        graph.replay()
        assert torch.equal(y, kernel(x, bias))


def test_a_graph_survives_the_scratch_being_outgrown() -> None:
    kernel, bias = kernel_and_bias(576, 576)
    kernel.prepare(bias)
    x = inputs(200, 576)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = kernel(x, bias)
    with triton_scratch.borrowed(16384, 4096, x) as larger:
        larger.fill_(torch.nan)
    graph.replay()
    assert torch.equal(y, F.linear(x, kernel.packed().unpack(), bias))


def test_one_compiled_function_serves_any_number_of_tokens() -> None:
    kernel, bias = kernel_and_bias(576, 576)
    compiled = torch.compile(lambda x: kernel(x, bias) + 1, fullgraph=True, dynamic=True)
    with torch.inference_mode():
        for tokens in (3, 20, 200):
            x = inputs(tokens, 576)
            assert torch.equal(compiled(x), kernel(x, bias) + 1)


def test_misaligned_activations_give_the_same_bits() -> None:
    kernel, bias = kernel_and_bias(576, 576)
    for tokens in (3, 17):
        x = inputs(tokens, 576)
        shifted = torch.empty(x.numel() + 1, dtype=x.dtype, device="cuda")[1:].view_as(x).copy_(x)
        assert torch.equal(kernel(shifted, bias), kernel(x, bias))


def test_infinity_and_nan_stay_with_their_token() -> None:
    kernel, bias = kernel_and_bias(130, 1028)
    for tokens in (3, 20):
        x = inputs(tokens, 1028)
        clean = kernel(x, bias)
        x[1, 1027], x[1, 3] = float("inf"), float("nan")
        y = kernel(x, bias)
        assert bool(y[1].isnan().all())
        assert torch.equal(y[2:], clean[2:]) and torch.equal(y[0], clean[0])
