"""What stays dense: our kernel multiplies by it in bfloat16, where it lies; all else is vLLM's."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional
from vllm_models import Forms, dense_model, greedy, prune, pruned
from vllm_runs import PROMPTS, TOKENS, Vllm

from twofour.serve.kernels import dense


@pytest.fixture(autouse=True)
def built_in_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TWOFOUR_CACHE", "/dev/null/twofour")


@pytest.fixture
def method() -> Any:
    """vLLM is imported where its warnings are no errors: in tests."""
    from twofour.serve.vllm_plugin.dense import TwofourDenseHeadMethod

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


def answers(vllm: Vllm, forms: Forms) -> list[str]:
    """The first token after each prompt is transformers', later ones may follow from roundings. Returns the kernels."""
    found = vllm.ask(forms.packed, options={"dtype": "bfloat16"}, held=True)
    assert "error" not in found, found
    expected = greedy(forms.dense, PROMPTS, TOKENS)
    assert [each[0] for each in found["tokens"]] == [each[0] for each in expected]
    kernels: list[str] = found["kernels"]
    return kernels


def test_a_head_that_shares_the_embedding_answers_in_bfloat16(vllm: Vllm, tmp_path: Path) -> None:
    assert answers(vllm, pruned(tmp_path / "tied", "llama", initializer_range=0.5)) == ["CpuKernel"]


def test_linears_that_stay_dense_take_our_kernel(vllm: Vllm, tmp_path: Path) -> None:
    source = dense_model(tmp_path / "unpruned", "llama", initializer_range=0.5)
    keep = ("model.layers.0.self_attn.o_proj", "model.layers.1.mlp.down_proj")
    packed, dense_form = (prune(source, tmp_path / form, form, None, None, *keep) for form in ("packed", "dense"))
    assert answers(vllm, Forms(packed, dense_form)) == ["CpuKernel", "DenseKernel"]
