"""Small random models of every family that the fused runner takes, dense and 2:4, and what they mean in float32."""

import copy
from functools import cache
from typing import Any

import torch
from torch import nn
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from twofour.prune.format.dense_int8 import to_dense_int8
from twofour.prune.format.packed import Packed, pack
from twofour.prune.format.rounding import to_int8
from twofour.prune.solving.magnitude import magnitude
from twofour.serve.model.dense_int8 import Int8Linear
from twofour.serve.model.linear import SparseLinear

VOCABULARY, POSITIONS = 512, 512
SHAPE = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 2, "vocab_size": VOCABULARY}
SHAPE |= {"max_position_embeddings": POSITIONS, "num_attention_heads": 4, "num_key_value_heads": 2}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
LLAMA3 |= {"original_max_position_embeddings": 64}
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 128}
FAMILIES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaForCausalLM, LlamaConfig(**SHAPE)),
    "llama, rope of Llama 3": (LlamaForCausalLM, LlamaConfig(**SHAPE | {"rope_parameters": LLAMA3})),
    "llama, yarn, biases": (
        LlamaForCausalLM,
        LlamaConfig(**SHAPE | {"rope_parameters": YARN, "attention_bias": True, "mlp_bias": True}),
    ),
    "mistral, window": (MistralForCausalLM, MistralConfig(**SHAPE, sliding_window=33)),
    "qwen2, 7 heads on 1": (
        Qwen2ForCausalLM,
        Qwen2Config(**SHAPE | {"hidden_size": 448, "num_attention_heads": 7, "num_key_value_heads": 1}),
    ),
    "qwen3, heads of 128": (Qwen3ForCausalLM, Qwen3Config(**SHAPE, head_dim=128)),
    "gemma3, two windows": (
        Gemma3ForCausalLM,
        Gemma3TextConfig(
            **SHAPE | {"head_dim": 80, "sliding_window": 33, "query_pre_attn_scalar": 64},
            tie_word_embeddings=False,
            layer_types=["sliding_attention", "full_attention"],
        ),
    ),
    "llama, heads of 16, ragged columns": (
        LlamaForCausalLM,
        LlamaConfig(**SHAPE | {"hidden_size": 128, "intermediate_size": 136, "head_dim": 16}),
    ),
}
FORMS = ("dense", "2:4", "2:4 int8", "2:4 int8 in blocks", "dense int8", "mixed")
HEADS = {"dense int8": "dense int8", "mixed": "dense int8"}  # of forms whose lm_head is not dense bfloat16


def _in_form(linear: nn.Linear, form: str) -> tuple[nn.Module, torch.Tensor]:
    """A linear in another form, and its weight [out, in]."""
    if form == "dense int8":
        return Int8Linear.from_linear(linear), to_dense_int8(linear.weight).unpack()
    packed = _packed(linear.weight, form)
    return SparseLinear(packed, linear.bias, "cpu"), packed.unpack()


def _packed(weight: torch.Tensor, form: str) -> Packed:
    packed = pack(magnitude(weight))
    return packed if form == "2:4" else to_int8(packed, 0 if form == "2:4 int8" else 64)


def _form(form: str, index: int) -> str:
    return FORMS[index % 5] if form == "mixed" else form


@cache
def models(family: str, form: str = "dense") -> tuple[Any, Any, Any]:
    """A bfloat16 model to be fused, transformers' own of the same weights, and theirs in float32."""
    make, config = FAMILIES[family]
    torch.manual_seed(0)
    model = make(copy.deepcopy(config)).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        spread = 0.3 if "norm" in name or "bias" in name else 0.06
        parameter.copy_(float("norm" in name) + spread * torch.randn(parameter.shape))
    model.bfloat16()
    weights = {name: parameter.float() for name, parameter in model.named_parameters()}
    for index, (name, linear) in enumerate(list(model.named_modules())):
        kind = _form(form, index) if "proj" in name else HEADS.get(form, "dense")
        if isinstance(linear, nn.Linear) and kind != "dense":
            replaced, weight = _in_form(linear, kind)
            weights[f"{name}.weight"] = weight.float()
            model.set_submodule(name, replaced)
    return model, *(_own(make, config, weights, dtype) for dtype in (torch.bfloat16, torch.float32))


def _own(make: Any, config: Any, weights: dict[str, torch.Tensor], dtype: torch.dtype) -> Any:
    model = make(copy.deepcopy(config)).eval().requires_grad_(False)
    model.load_state_dict(weights)
    return model.to(dtype)
