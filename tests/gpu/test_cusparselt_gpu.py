"""cuSPARSELt on a device: the product, the search, what it gives back, in a graph, compiled."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from twofour.prune.format.packed import Packed, pack
from twofour.prune.solving.magnitude import magnitude
from twofour.serve.kernels.cusparselt import kernel as cusparselt
from twofour.serve.kernels.cusparselt.kernel import CusparseltKernel
from twofour.serve.kernels.cusparselt.search import Algorithm, Tuning, _mm_search, algorithms

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and torch.backends.cusparselt.is_available()),
        reason="no CUDA device, or a torch without cuSPARSELt",
    ),
]
SHAPES = [(1024, 2048), (576, 1536), (16, 64)]
BUCKETS = (1, 16, 64, 256)


def packed_weight(rows: int, columns: int, dtype: torch.dtype = torch.bfloat16) -> Packed:
    draw = torch.Generator("cuda").manual_seed(0)
    return pack(magnitude(torch.randn(rows, columns, device="cuda", generator=draw).to(dtype)))


def inputs(tokens: int, columns: int, dtype: torch.dtype = torch.bfloat16, seed: int = 1) -> Tensor:
    draw = torch.Generator("cuda").manual_seed(seed)
    return torch.randn(tokens, columns, device="cuda", generator=draw).to(dtype)


def assert_product(y: Tensor, x: Tensor, packed: Packed, bias: Tensor | None) -> None:
    weight, wide = packed.unpack().double(), None if bias is None else bias.double()
    exact = F.linear(x.double(), weight, wide)
    magnitude = F.linear(x.double().abs(), weight.abs(), None if wide is None else wide.abs())
    # splits may be added up in the dtype of the result
    allowed = 4 * torch.finfo(y.dtype).eps * exact.abs() + torch.finfo(y.dtype).eps / 4 * magnitude
    assert bool(((y.double() - exact).abs() <= allowed).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_the_product_before_and_after_a_search(rows: int, columns: int, dtype: torch.dtype) -> None:
    packed = packed_weight(rows, columns, dtype)
    assert cusparselt.refusal(packed) is None
    plain = CusparseltKernel.from_packed(packed)
    tuned, bias = plain.tuned(BUCKETS), inputs(1, rows, dtype)[0]
    for tokens in (0, 1, 7, 8, 16, 65, 300):
        x = inputs(tokens, columns, dtype)
        for kernel in (plain, tuned):
            assert_product(kernel(x, None), x, packed, None)
            assert_product(kernel(x, bias), x, packed, bias)


def test_torch_has_the_search_that_is_not_deprecated() -> None:
    assert _mm_search() is not None


def test_a_search_finds_an_algorithm_for_each_bucket_and_can_be_kept() -> None:
    tuned = CusparseltKernel.from_packed(packed_weight(1024, 2048)).tuned(BUCKETS)
    assert tuned.tuning and [tokens for tokens, _ in tuned.tuning.algorithms] == [8, 16, 64, 256]
    kept = Tuning.from_numbers(tuned.tuning.library_version, tuned.tuning.numbers)
    assert replace(tuned, tuning=None).with_tuning(kept).tuning == tuned.tuning


@pytest.mark.parametrize("tokens", [8, 64])
def test_every_algorithm_and_split_is_right_or_refused(tokens: int) -> None:
    packed = packed_weight(1024, 14_336)
    kernel, x = CusparseltKernel.from_packed(packed), inputs(tokens, 14_336)
    propose = _mm_search()
    assert propose is not None
    *_, count = propose(kernel.blob, x.t(), None, None, None, True)
    taken = 0
    for found in algorithms(count, tokens):
        try:
            y = replace(kernel, tuning=Tuning(0, ((tokens, found),)))(x, None)
        except RuntimeError:
            continue
        assert_product(y, x, packed, None)
        taken += found.split_k > 1
    assert taken  # or the search for splits is for nothing


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_gives_back_the_stored_bytes(dtype: torch.dtype) -> None:
    packed = packed_weight(576, 1536, dtype)
    back = CusparseltKernel.from_packed(packed).packed()
    assert torch.equal(back.values, packed.values) and torch.equal(back.positions, packed.positions)


@pytest.mark.parametrize("tokens", [1, 20, 300])
def test_a_captured_graph_replays_on_changed_inputs(tokens: int) -> None:
    packed = packed_weight(1024, 2048)
    kernel = CusparseltKernel.from_packed(packed).tuned(BUCKETS)
    x = inputs(tokens, 2048)
    kernel(x, None)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = kernel(x, None)
    for seed in (2, 3):
        x.copy_(inputs(tokens, 2048, seed=seed))
        graph.replay()
        assert_product(y, x, packed, None)


def test_one_compiled_function_serves_any_number_of_tokens() -> None:
    kernel = replace(CusparseltKernel.from_packed(packed_weight(576, 1536)), tuning=Tuning(0, ((8, Algorithm()),)))
    compiled = torch.compile(lambda x: kernel(x, None) + 1, fullgraph=True, dynamic=True)
    with torch.inference_mode():
        for tokens in (3, 20, 200):
            x = inputs(tokens, 1536)
            torch.testing.assert_close(compiled(x), kernel(x, None) + 1)
