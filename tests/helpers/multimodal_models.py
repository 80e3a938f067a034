"""Tiny multimodal models of the real classes, with random weights, and folders of them as they are published."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers as hf
from safetensors.torch import load_file, save_file
from torch import Tensor

from twofour.prune.format.folder import read_config, write_json

TEXT: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
SIGLIP: dict[str, Any] = {"num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
SIGLIP |= {"hidden_size": 16, "intermediate_size": 16}
VISUAL: dict[str, Any] = {"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4}
VISUAL |= {"out_hidden_size": 64}
YARN: dict[str, Any] = {"rope_type": "yarn", "type": "yarn", "rope_theta": 1e6, "factor": 4.0, "beta_fast": 32.0}
YARN |= {"beta_slow": 1.0, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1}
YARN |= {"original_max_position_embeddings": 64}
SECTIONS = {"mrope_section": [4, 2, 2]}


def gemma3() -> Any:
    """Tied, as all that are published, with a window in all layers but the last."""
    linear = {"factor": 8.0, "rope_type": "linear"}
    types = ["sliding_attention", "sliding_attention", "full_attention"]
    text = TEXT | {"head_dim": 16, "sliding_window": 16, "rope_scaling": linear, "layer_types": types}
    return hf.Gemma3ForConditionalGeneration(
        hf.Gemma3Config(text_config=text, vision_config=SIGLIP, mm_tokens_per_image=4)
    )


def mistral3(kind: str = "mistral", **text: Any) -> Any:
    about = TEXT | {"model_type": kind, "head_dim": 16, "sliding_window": None} | text
    vision = SIGLIP | {"model_type": "pixtral", "head_dim": 8}
    return hf.Mistral3ForConditionalGeneration(
        hf.Mistral3Config(text_config=about, vision_config=vision, tie_word_embeddings=False)
    )


def qwen3_vl(tied: bool = False) -> Any:
    rope = {"rope_scaling": SECTIONS | {"mrope_interleaved": True, "rope_type": "default"}, "rope_theta": 5e6}
    config = hf.Qwen3VLConfig(
        text_config=TEXT | {"head_dim": 16} | rope,
        vision_config=VISUAL | {"deepstack_visual_indexes": [0, 1]},
        tie_word_embeddings=tied,
    )
    return hf.Qwen3VLForConditionalGeneration(config)


def qwen2_5_vl() -> Any:
    rope = {"rope_scaling": SECTIONS | {"type": "mrope"}, "rope_theta": 1e6}
    return hf.Qwen2_5_VLForConditionalGeneration(
        hf.Qwen2_5_VLConfig(text_config=TEXT | rope, vision_config=VISUAL | {"fullatt_block_indexes": [1]})
    )


MODELS: dict[str, Callable[[], Any]] = {
    "gemma3": gemma3,
    "mistral3": mistral3,
    "ministral": lambda: mistral3("ministral", sliding_window=16),
    "ministral3": lambda: mistral3("ministral3", rope_parameters=YARN),
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "qwen3_vl tied": lambda: qwen3_vl(tied=True),
}
LLAVA_OLD = {"model.language_model.": "language_model.model.", "lm_head.": "language_model.lm_head."}
LLAVA_OLD |= {part: part.removeprefix("model.") for part in ("model.vision_tower.", "model.multi_modal_projector.")}
QWEN_OLD = {"model.language_model.": "model.", "model.visual.": "visual."}


def random(name: str, dtype: torch.dtype = torch.float32) -> Any:
    """The model, with weights that matter, also of its norms and biases."""
    torch.manual_seed(0)
    model = MODELS[name]().eval().requires_grad_(False)
    for path, parameter in model.named_parameters():
        parameter.copy_(float("norm" in path) + 0.2 * torch.randn(parameter.shape))
    return model.to(dtype)


def published(model: Any, folder: Path, old_names: bool) -> Path:
    """Write a folder with the names of tensors that transformers has now, or those it had before."""
    model.save_pretrained(folder)
    old = QWEN_OLD if "Qwen" in type(model).__name__ else LLAVA_OLD
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    tensors = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    renamed = {_renamed(name, old): tensor.clone() for name, tensor in tensors.items()} if old_names else tensors
    save_file({name: tensor.contiguous() for name, tensor in renamed.items()}, folder / "model.safetensors")
    for name in ("preprocessor_config.json", "processor_config.json"):
        write_json(folder / name, {})
    return folder


def _renamed(name: str, names: dict[str, str]) -> str:
    before = next((before for before in names if name.startswith(before)), "")
    return names.get(before, "") + name.removeprefix(before)


def changed(folder: Path, tensors: dict[str, Tensor | None], **config: Any) -> Path:
    """Change a folder in place; None takes a tensor away."""
    stored = load_file(folder / "model.safetensors") | tensors
    save_file({name: tensor for name, tensor in stored.items() if tensor is not None}, folder / "model.safetensors")
    write_json(folder / "config.json", read_config(folder) | config)
    return folder


def logits(model: Any, length: int = 64) -> Tensor:
    ids = torch.randint(3, 320, (2, length), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        result: Tensor = model(input_ids=ids).logits
    return result
