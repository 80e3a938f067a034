import pytest
import torch
from torch import nn

from twofour.serve.kernels import cpu, dense
from twofour.serve.kernels.dense import DenseLinear

pytestmark = pytest.mark.skipif(cpu.available().startswith("none"), reason=cpu.available())


@pytest.mark.parametrize("tokens", [0, 1, 3, 9])
@pytest.mark.parametrize("has_bias", [True, False])
@torch.inference_mode()
def test_equals_the_linear_it_replaces(tokens: int, has_bias: bool) -> None:
    linear = nn.Linear(128, 50, bias=has_bias).bfloat16()
    ours = DenseLinear(linear, crossover_tokens=4)
    x = torch.randn(2, tokens, 128).bfloat16()
    torch.testing.assert_close(ours(x), linear(x), rtol=1e-2, atol=1e-2)
    assert ours.weight is linear.weight and ours.bias is linear.bias


def test_few_tokens_go_to_our_kernel_and_more_to_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(dense.cpu, "dense_linear", lambda x, *rest: seen.append(x.numel() // 128))
    linear = DenseLinear(nn.Linear(128, 50).bfloat16(), crossover_tokens=4)
    for tokens in (1, 4, 5, 9):
        linear(torch.randn(tokens, 128).bfloat16())
    assert seen == [1, 4]


def test_what_our_kernel_cannot_read_in_place_goes_to_torch() -> None:
    assert dense.takes(torch.zeros(3, 128).bfloat16())
    assert not dense.takes(torch.zeros(3, 100).bfloat16())
    assert not dense.takes(torch.zeros(3, 128))
    assert not dense.takes(torch.zeros(128, 3).bfloat16().t())
    linear = DenseLinear(nn.Linear(128, 50), crossover_tokens=4)
    x = torch.randn(2, 128)
    assert torch.equal(linear(x), nn.functional.linear(x, linear.weight, linear.bias))


@torch.inference_mode()
def test_compiles_whole() -> None:
    linear = DenseLinear(nn.Linear(128, 50).bfloat16(), crossover_tokens=4)
    compiled = torch.compile(linear, fullgraph=True, backend="eager", dynamic=True)
    for tokens in (2, 7):
        x = torch.randn(tokens, 128).bfloat16()
        assert torch.equal(compiled(x), linear(x))


@torch.inference_mode()
def test_a_tied_weight_stays_one() -> None:
    embedding, head = nn.Embedding(50, 128).bfloat16(), nn.Linear(128, 50, bias=False).bfloat16()
    head.weight = embedding.weight
    ours = DenseLinear(head, crossover_tokens=4)
    before = ours(torch.ones(1, 128).bfloat16())
    embedding.weight.mul_(2)
    torch.testing.assert_close(ours(torch.ones(1, 128).bfloat16()), 2 * before, rtol=1e-2, atol=1e-2)
