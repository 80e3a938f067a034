"""Mixed folders in the real vLLM: each layer as its scheme says, the same text, and what does not fit is named."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from mixed_folders import Choose, mixed
from vllm_models import Tensors, damaged, dense_model, greedy, ours
from vllm_runs import PROMPTS, Vllm

from twofour.prune.format.schemes import Scheme
from twofour.prune.label.convert import convert

BLOCK = "model.layers.0"


@pytest.fixture(scope="session", params=["llama", "qwen2", "phi3"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every scheme, in float32, the weights expanded beside it; qwen2 has biases, phi3 merged linears of its own."""
    models = tmp_path_factory.mktemp("models")
    made = mixed(dense_model(models / "dense", request.param), models / "mixed")
    convert(made, models / "zeros", "dense")
    return made


def test_it_is_what_transformers_answers(vllm: Vllm, folder: Path) -> None:
    """Where int8 is, our kernel rounds activations to 16 bits: later tokens may follow from that."""
    found = vllm.ask(folder, held=True, options={"dtype": "float32"})
    assert "error" not in found, found
    assert found["kernels"] == ["CpuKernel", "DenseInt8Kernel"]
    expanded = folder.parent / "zeros"
    assert [tokens[:8] for tokens in found["tokens"]] == [tokens[:8] for tokens in greedy(expanded, PROMPTS, 8)]
    assert [tokens[:8] for tokens in found["tokens"]] == [tokens[:8] for tokens in ours(folder)]
    plain = vllm.ask(expanded, options={"dtype": "float32"})
    for mine, its in zip(found["logprobs"], plain["logprobs"], strict=True):
        assert mine == pytest.approx(its, abs=2e-3)


def test_in_bfloat16_every_scheme_has_a_kernel_of_ours(vllm: Vllm, tmp_path: Path) -> None:
    dense = dense_model(tmp_path / "dense", "llama", dtype=torch.bfloat16)
    found = vllm.ask(mixed(dense, tmp_path / "mixed"), held=True, options={"dtype": "bfloat16"})
    assert "error" not in found, found
    assert {"CpuKernel", "DenseInt8Kernel"} <= set(found["kernels"]) <= {"CpuKernel", "DenseInt8Kernel", "DenseKernel"}
    assert {f"{BLOCK}.self_attn.qkv_proj", "model.layers.1.mlp.down_proj"} <= set(found["layers"])


def test_a_compiled_model_answers_the_same(vllm: Vllm, tmp_path: Path) -> None:
    folder = mixed(dense_model(tmp_path / "dense", "llama"), tmp_path / "mixed")
    compiled = vllm.tokens(folder, options={"enforce_eager": False})
    assert [tokens[:8] for tokens in compiled] == [tokens[:8] for tokens in vllm.tokens(folder)]


def but(name: str, scheme: Scheme) -> Choose:
    return lambda other: scheme if other == f"{BLOCK}.{name}" else "2:4"


@pytest.mark.parametrize("scheme", ["dense", "dense-int8", "2:4-int8"])
def test_parts_of_one_layer_that_differ_are_refused_by_name(vllm: Vllm, tmp_path: Path, scheme: Scheme) -> None:
    folder = mixed(dense_model(tmp_path / "dense", "llama"), tmp_path / "mixed", but("self_attn.k_proj", scheme))
    answer = vllm.ask(folder, options={"dtype": "float32"})
    assert f"{BLOCK}.self_attn.k_proj is {scheme}" in answer["message"] and "store them alike" in answer["message"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda t: t.pop(f"{BLOCK}.self_attn.k_proj.int8_scales"), f"lacks {BLOCK}.self_attn.k_proj.int8_scales"),
        (lambda t: t.pop(f"{BLOCK}.self_attn.v_proj.int8_values"), f"lacks {BLOCK}.self_attn.v_proj.int8_values"),
        (
            lambda t: t[f"{BLOCK}.self_attn.q_proj.int8_values"][5, 3].fill_(-128),
            f"{BLOCK}.self_attn.q_proj has the value -128 at row 5, column 3",
        ),
        (
            lambda t: t[f"{BLOCK}.self_attn.k_proj.int8_scales"][5, 1].fill_(torch.nan),
            f"{BLOCK}.self_attn.k_proj has the scale nan at row 5, number 1",
        ),
        (
            lambda t: t.update(
                {f"{BLOCK}.self_attn.q_proj.int8_values": t[f"{BLOCK}.self_attn.q_proj.int8_values"].float()}
            ),
            "does not take int8_values that are torch.float32",
        ),
    ],
)
def test_damage_is_named(vllm: Vllm, tmp_path: Path, change: Callable[[Tensors], object], words: str) -> None:
    folder = mixed(dense_model(tmp_path / "dense", "llama"), tmp_path / "mixed")
    answer = vllm.ask(damaged(tmp_path / "damaged", folder, change), options={"dtype": "float32"})
    assert words in answer["message"]
