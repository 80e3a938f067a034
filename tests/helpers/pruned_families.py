"""Tiny models of the families that can be pruned, with random weights."""

from typing import Any

import torch
import transformers as hf
from torch import Tensor

SHAPE: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
OPT: dict[str, Any] = {"word_embed_proj_dim": 32, "ffn_dim": 48}
GEMMA3: dict[str, Any] = {
    "head_dim": 8,
    "sliding_window": 6,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
FAMILIES: dict[str, tuple[type[Any], type[Any], dict[str, Any]]] = {
    "llama": (hf.LlamaConfig, hf.LlamaForCausalLM, {}),
    "mistral": (hf.MistralConfig, hf.MistralForCausalLM, {"sliding_window": 6}),
    "qwen2": (hf.Qwen2Config, hf.Qwen2ForCausalLM, {}),
    "qwen3": (hf.Qwen3Config, hf.Qwen3ForCausalLM, {"head_dim": 8}),
    "gemma2": (hf.Gemma2Config, hf.Gemma2ForCausalLM, {"head_dim": 8, "sliding_window": 6}),
    "gemma3": (hf.Gemma3TextConfig, hf.Gemma3ForCausalLM, GEMMA3),
    "phi": (hf.PhiConfig, hf.PhiForCausalLM, {}),
    "phi3": (hf.Phi3Config, hf.Phi3ForCausalLM, {}),
    "opt": (hf.OPTConfig, hf.OPTForCausalLM, OPT),
    "gpt_neox": (hf.GPTNeoXConfig, hf.GPTNeoXForCausalLM, {}),
}


def tiny(family: str, **changes: Any) -> Any:
    torch.manual_seed(0)
    config_class, model_class, extra = FAMILIES[family]
    return model_class(config_class(**(SHAPE | extra | changes))).eval().requires_grad_(False)


def tokens(samples: int = 5, length: int = 16) -> Tensor:
    return torch.randint(1, 101, (samples, length), generator=torch.Generator().manual_seed(0))
