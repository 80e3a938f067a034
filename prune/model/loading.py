"""A dense folder becomes a transformers model, also where only its text tower is taken, or it is in FP8."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from twofour.prune.format.dense import Dense


def from_dense(folder: Path, dtype: torch.dtype | str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Let transformers load a dense folder; safetensors only, no code. Returns the model, and what was loaded.

    options: of `from_pretrained`. It raises a dozen kinds of errors, for a folder can hold anything.
    """
    from transformers import AutoModelForCausalLM, GenerationConfig

    with Dense(folder) as tensors:
        if not tensors.is_ordinary:
            model, report = from_tensors(tensors.config, dict(tensors), dtype=dtype, **options)
            if (folder / "generation_config.json").exists():
                model.generation_config = GenerationConfig.from_pretrained(folder)
            return model, report
    loaded: tuple[Any, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, use_safetensors=True, trust_remote_code=False, output_loading_info=True, **options
    )
    return loaded


def from_tensors(
    config: Mapping[str, Any], tensors: Mapping[str, Tensor], **options: Any
) -> tuple[Any, dict[str, Any]]:
    """Let transformers make the causal language model of a config.json of these tensors. They are not copied."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    described = CONFIG_MAPPING[config["model_type"]].from_dict(dict(config))
    loaded: tuple[Any, dict[str, Any]] = MODEL_FOR_CAUSAL_LM_MAPPING[type(described)].from_pretrained(
        None, config=described, state_dict=dict(tensors), output_loading_info=True, **options
    )
    return loaded
