"""The operator behind all linears: by torch's own checks, and against the dense product."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from twofour.prune.errors import ServerError
from twofour.prune.format.packed import Packed, pack
from twofour.prune.format.rounding import to_int8
from twofour.prune.solving.magnitude import magnitude
from twofour.serve.kernels.cpu.kernel import CpuKernel

ROWS, COLUMNS = 96, 128


def packed(seed: int = 0) -> Packed:
    weight = torch.randn(ROWS, COLUMNS, generator=torch.Generator().manual_seed(seed))
    return pack(magnitude(weight.bfloat16()))


@pytest.fixture
def held() -> Iterator[tuple[nn.Module, Packed]]:
    from twofour.serve.vllm_plugin import linear

    layer, weight = nn.Module(), packed()
    linear.hold(layer, CpuKernel.from_packed(weight), ROWS)
    yield layer, weight


def product(layer: nn.Module, x: Tensor, bias: Tensor | None = None) -> Tensor:
    from twofour.serve.vllm_plugin import op

    y: Tensor = op.linear24(x, layer.weight_packed, bias, ROWS)
    return y


@pytest.mark.parametrize("shape", [(1,), (5,), (2, 3), (300,), (0,)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_it_is_the_dense_product(held: tuple[nn.Module, Packed], shape: tuple[int, ...], has_bias: bool) -> None:
    layer, weight = held
    x = torch.randn(*shape, COLUMNS).bfloat16()
    bias = torch.randn(ROWS).bfloat16() if has_bias else None
    with torch.inference_mode():
        found = product(layer, x, bias)
    expected = nn.functional.linear(x.float(), weight.unpack().float(), None if bias is None else bias.float())
    assert found.shape == (*shape, ROWS) and found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), expected, rtol=0.02, atol=0.05)


class Always(dict[int, Any]):
    """Finds one kernel at any address: torch's checks call the operator with copies."""

    def get(self, address: int, default: Any = None) -> Any:
        return self[0]


@pytest.mark.parametrize("has_bias", [True, False])
def test_torch_accepts_schema_and_fake(
    held: tuple[nn.Module, Packed], has_bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from twofour.serve.vllm_plugin import op

    layer, _ = held
    monkeypatch.setattr(op, "_kernels", Always({0: layer.twofour_kernel}))
    bias = torch.randn(ROWS).bfloat16() if has_bias else None
    arguments = (torch.randn(3, COLUMNS).bfloat16(), layer.weight_packed.data, bias, ROWS)
    torch.library.opcheck(op.linear24.default, arguments)


def test_layers_of_one_shape_share_a_graph() -> None:
    """For any number of tokens: what differs between layers is in the tensors, not in the graph."""
    from twofour.serve.vllm_plugin import linear

    graphs = []

    def backend(graph: torch.fx.GraphModule, inputs: object) -> object:
        graphs.append(graph)
        return graph.forward

    layers = [nn.Module() for _ in range(4)]
    for seed, layer in enumerate(layers):
        linear.hold(layer, CpuKernel.from_packed(packed(seed)), ROWS)
    compiled = torch.compile(
        lambda x, weight: torch.ops.twofour.vllm_linear24(x, weight, None, ROWS),
        backend=backend,
        dynamic=True,
        fullgraph=True,
    )
    with torch.no_grad():
        for layer in layers:
            for tokens in (2, 7, 300):
                x = torch.randn(tokens, COLUMNS).bfloat16()
                torch.testing.assert_close(compiled(x, layer.weight_packed), product(layer, x), rtol=0, atol=0)
    assert len(graphs) == 1


def test_a_kernel_goes_with_its_layer() -> None:
    from twofour.serve.vllm_plugin import linear, op

    before = len(op._kernels)
    layer = nn.Module()
    linear.hold(layer, CpuKernel.from_packed(packed()), ROWS)
    assert len(op._kernels) == before + 1
    del layer
    assert len(op._kernels) == before


def test_a_weight_that_nobody_knows_is_refused() -> None:
    from twofour.serve.vllm_plugin import op

    with pytest.raises(ServerError, match="2:4 weight was moved"):
        op.linear24(torch.randn(1, COLUMNS).bfloat16(), torch.zeros(8, dtype=torch.uint8), None, ROWS)


def test_weights_loaded_again_take_the_same_memory(held: tuple[nn.Module, Packed]) -> None:
    from twofour.serve.vllm_plugin import linear

    layer, _ = held
    address = layer.weight_packed.data_ptr()
    other = packed(seed=7)
    linear.hold(layer, CpuKernel.from_packed(other), ROWS)
    x = torch.randn(3, COLUMNS).bfloat16()
    assert layer.weight_packed.data_ptr() == address
    torch.testing.assert_close(product(layer, x), CpuKernel.from_packed(other)(x, None), rtol=0, atol=0)


def test_weights_of_another_kind_do_not() -> None:
    from twofour.serve.vllm_plugin import linear

    layer = nn.Module()
    linear.hold(layer, CpuKernel.from_packed(packed()), ROWS)
    with pytest.raises(ServerError, match="start vLLM anew"):
        linear.hold(layer, CpuKernel.from_packed(to_int8(packed())), ROWS)


@pytest.mark.parametrize(
    ("columns", "ranks", "scale_columns", "multiple"), [(96, 8, 0, 8), (96, 2, 64, 64), (100, 2, 0, 8)]
)
def test_what_cannot_be_split_over_ranks(columns: int, ranks: int, scale_columns: int, multiple: int) -> None:
    from twofour.serve.vllm_plugin.linear import require_whole

    with pytest.raises(ValueError, match=rf"down_proj \[64, {columns}\].*{ranks} ranks.*a multiple of {multiple}"):
        require_whole("down_proj", (64, columns), columns // ranks, scale_columns)


def test_what_can_be_split_over_ranks() -> None:
    from twofour.serve.vllm_plugin.linear import require_whole

    require_whole("o_proj", (64, 128), 64, 64)
    require_whole("o_proj", (64, 100), 100, 64)  # on one rank, any multiple of 4
