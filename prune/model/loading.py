"""A dense folder becomes a transformers model, also one whose text tower or whose weights in FP8 are taken out of it."""

from pathlib import Path
from typing import Any

import torch

from twofour.prune.format.dense import Dense


def from_dense(folder: Path, dtype: torch.dtype | str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """Let transformers load a dense folder; safetensors only, no code. Returns the model, and what was loaded.

    options: of `from_pretrained`. It raises a dozen kinds of errors, for a folder can hold anything.
    """
    from transformers import AutoModelForCausalLM

    options = {"dtype": dtype, "trust_remote_code": False, "output_loading_info": True, **options}
    with Dense(folder) as tensors:
        if not tensors.is_ordinary:
            return _from_tensors(tensors, folder, options)
    loaded: tuple[Any, dict[str, Any]] = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **options)
    return loaded


def _from_tensors(tensors: Dense, folder: Path, options: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Let transformers load tensors that are in memory: those of the files are mapped, those read back are made."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, GenerationConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    config = CONFIG_MAPPING[tensors.config["model_type"]].from_dict(tensors.config)
    model, report = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)].from_pretrained(
        None, config=config, state_dict=dict(tensors), **options
    )
    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model, report
