"""The model that a config.json describes, without weights: the tensors of its folder are compared with it.

It is made on the meta device, where a matrix of any size takes no memory. But blocks and experts are made one by one,
so a config.json may not ask for more of them than the folder has tensors (`format.counts`).
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import nn

from twofour.prune.errors import CheckpointError
from twofour.prune.format.counts import require_bounded
from twofour.prune.format.weights import Weights


def skeleton(config: Mapping[str, Any], weights: Weights) -> nn.Module:
    """Make the causal language model of a config.json, its parameters float32 on the meta device.

    Raises CheckpointError where transformers cannot make it, or it has more blocks or experts than there are tensors.
    """
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        raise CheckpointError(
            f"config.json has the model_type {kind!r}, which this transformers does not know; upgrade it"
        )
    config_class = CONFIG_MAPPING[kind]
    require_bounded(config, config_class.attribute_map, len(weights))
    plain = {key: value for key, value in config.items() if key != "quantization_config"}
    try:
        with torch.device("meta"):
            model: nn.Module = AutoModelForCausalLM.from_config(
                config_class.from_dict(plain), dtype=torch.float32, trust_remote_code=False
            )
    except Exception as error:  # of a dozen kinds: a config.json can say anything
        reason = str(error).strip().partition("\n")[0]
        raise CheckpointError(
            f"config.json describes no model that transformers can make ({type(error).__name__}: {reason}); "
            "take an intact copy"
        ) from error
    return model


def misfits(model: nn.Module, weights: Weights) -> Iterator[str]:
    """Say which stored tensors have another shape than the parameter of their name."""
    for name, parameter in model.named_parameters():
        if name in weights and (found := weights.shape(name)) != tuple(parameter.shape):
            expected = list(parameter.shape)
            yield f"{name} has shape {list(found)}, by config.json it has {expected}; take an intact copy of the model"
        elif 0 in parameter.shape:
            yield f"{name} has no weights by config.json, its shape is {list(parameter.shape)}; take an intact copy"
