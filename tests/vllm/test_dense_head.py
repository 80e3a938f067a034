"""A dense lm_head: our kernel multiplies few tokens by it in bfloat16, where it lies; all else is vLLM's."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from vllm_models import Forms, greedy, pruned
from vllm_runs import PROMPTS, TOKENS, Vllm

from twofour.serve.kernels import dense


@pytest.fixture(autouse=True)
def built_in_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOFOUR_CACHE", "/dev/null/twofour")


@pytest.fixture
def method() -> Any:
    """vLLM is imported where its warnings are no errors: in tests."""
    from twofour.serve.vllm_plugin.dense_head import TwofourDenseHeadMethod

    return TwofourDenseHeadMethod()


def head(dtype: torch.dtype, columns: int = 128) -> nn.Module:
    layer = nn.Module()
    torch.manual_seed(0)
    layer.weight = nn.Parameter(torch.randn(320, columns).to(dtype), requires_grad=False)
    return layer


def test_our_kernel_multiplies_by_the_weight_where_it_lies(method: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    layer, seen = head(torch.bfloat16), list[int]()
    ours = dense.cpu.dense_linear

    def watched(x: Any, weight: torch.Tensor, bias: Any) -> Any:
        seen.append(weight.data_ptr())
        return ours(x, weight, bias)

    monkeypatch.setattr(dense.cpu, "dense_linear", watched)
    method.process_weights_after_loading(layer)
    x, bias = torch.randn(3, 128).bfloat16(), torch.randn(320).bfloat16()
    expected = functional.linear(x.float(), layer.weight.float(), bias.float())
    with torch.inference_mode():
        torch.testing.assert_close(method.apply(layer, x, bias).float(), expected, rtol=2**-8, atol=1e-5)
        assert torch.equal(method.embedding(layer, torch.tensor([5, 2])), layer.weight[[5, 2]])
    assert seen == [layer.weight.data_ptr()] and not hasattr(layer, "cpu_linear")


@pytest.mark.parametrize(("dtype", "columns"), [(torch.float32, 128), (torch.bfloat16, 96)])
def test_what_our_kernel_does_not_take_is_vllms(method: Any, dtype: torch.dtype, columns: int) -> None:
    layer = head(dtype, columns)
    method.process_weights_after_loading(layer)
    assert hasattr(layer, "cpu_linear")
    x = torch.randn(3, columns).to(dtype)
    with torch.inference_mode():
        torch.testing.assert_close(method.apply(layer, x), functional.linear(x, layer.weight), rtol=2e-2, atol=2e-2)


def test_a_head_that_shares_the_embedding_answers_in_bfloat16(
    vllm: Vllm, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The likeliest tokens of this model are ahead by more than roundings: its logits are far apart."""
    forms: Forms = pruned(tmp_path_factory.mktemp("tied"), "llama", initializer_range=0.5)
    found, expected = vllm.tokens(forms.packed, "bfloat16"), greedy(forms.dense, PROMPTS, TOKENS)
    assert [each[:4] for each in found] == [each[:4] for each in expected]
