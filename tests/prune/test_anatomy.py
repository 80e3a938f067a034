"""What of a model is pruned, what stays dense, and every model that is refused before any work."""

from typing import Any

import pytest
import transformers as hf
from pruned_families import FAMILIES, SHAPE, tiny
from torch import nn

from twofour.prune import anatomy
from twofour.prune.errors import ModelError


def refused(model: nn.Module, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        anatomy.dissect(model)


def test_conv1d_is_refused_by_name() -> None:
    model = hf.GPT2LMHeadModel(hf.GPT2Config(n_embd=32, n_layer=2, n_head=4, vocab_size=101))
    refused(model, r"transformer\.h\.0\.attn\.c_attn\.weight \(32x96, of Conv1D\) is not the weight of a linear")


def test_fused_experts_of_another_family_are_refused_by_name() -> None:
    config = hf.Qwen2MoeConfig(**SHAPE, num_experts=4, moe_intermediate_size=48)
    refused(hf.Qwen2MoeForCausalLM(config), r"layers\.0\.mlp\.\S+ \(4x96x32, of Qwen2MoeExperts\) is not the weight")


def test_a_width_that_4_does_not_divide_is_refused_by_name() -> None:
    model = tiny("llama", intermediate_size=66)
    refused(model, r"model\.layers\.0\.mlp\.down_proj has 66 inputs, which 4 does not divide")


@pytest.mark.parametrize("target", ["lm_head", "model.embed_tokens", "model.layers.2.mlp.up_proj"])
def test_a_linear_tied_to_something_else_is_refused(target: str) -> None:
    model = tiny("llama", vocab_size=48, pad_token_id=0, num_hidden_layers=3, intermediate_size=48)
    model.model.layers[1].mlp.up_proj.weight = model.get_submodule(target).weight
    refused(model, r"layers\.\d\.mlp\.up_proj\.weight is tied to (lm_head|model)\S*\.weight")


def test_tied_embeddings_are_no_obstacle() -> None:
    parts = anatomy.dissect(tiny("llama", tie_word_embeddings=True))
    assert list(parts.dense) == ["lm_head"] and len(parts.linears) == 21


def test_linears_outside_the_blocks_stay_dense_and_are_listed() -> None:
    parts = anatomy.dissect(tiny("opt", word_embed_proj_dim=16))
    assert sorted(parts.dense) == ["lm_head", "model.decoder.project_in", "model.decoder.project_out"]


def test_two_dtypes_are_refused() -> None:
    model = tiny("llama")
    model.model.layers[1].mlp.up_proj.bfloat16()
    refused(model, "stored in one dtype")


def test_no_list_of_blocks_or_two_of_them() -> None:
    model = tiny("llama")
    model.more = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])
    refused(model, "has 2 lists of 3 decoder blocks")
    model.config.num_hidden_layers = 5
    refused(model, "has 0 lists of 5 decoder blocks")


CONFIGS: dict[str, tuple[dict[str, Any], str]] = {
    "quantised": ({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}}, r"quantised \(gptq\)"),
    "pruned": ({"model_type": "llama", "quantization_config": {"quant_method": "twofour"}}, r"\(twofour\)"),
    "multimodal": ({"model_type": "gemma3", "vision_config": {}}, "gemma3 is multimodal"),
    "encoder-decoder": ({"model_type": "t5", "is_encoder_decoder": True}, "t5 is an encoder-decoder"),
    "unknown": ({"model_type": "newest"}, "knows no causal language model 'newest'; upgrade"),
    "nameless": ({}, "knows no causal language model None"),
}


@pytest.mark.parametrize("case", CONFIGS)
def test_configs_that_are_refused(case: str) -> None:
    config, message = CONFIGS[case]
    with pytest.raises(ModelError, match=message):
        anatomy.refuse_config(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_configs_that_are_fine(family: str) -> None:
    anatomy.refuse_config(FAMILIES[family][0](**(SHAPE | FAMILIES[family][2])).to_dict())
