"""The quantization method `twofour` of vLLM: what config.json says, and which layer is loaded how.

A folder that `twofour prune` wrote says what it is in config.json, and names the modules that stay dense. Without that,
and with `-q twofour`, the folder is dense with zeros: linears are packed while they are loaded, those that its
twofour.json names, or all. vLLM makes one linear of several (q, k and v; gate and up): they are stored alike.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from vllm.model_executor.layers.quantization import register_quantization_config
from vllm.model_executor.layers.quantization.base_config import QuantizationConfig

from twofour.prune.errors import TwofourError
from twofour.prune.format.checkpoint import FLOATS, MANIFEST, VARIANT
from twofour.prune.format.quantization import Kind, default, named, require_known

DENSE, SPARSE = Kind("dense", ""), Kind("2:4", "")  # in the dtype of the model
CAPABILITY = 80  # of a GPU: the first with 2:4 tensor cores


@register_quantization_config(VARIANT)
class TwofourVllmConfig(QuantizationConfig):  # type: ignore[misc]
    """`stored`: the quantization_config of a packed folder; None: the folder is dense with zeros."""

    def __init__(self, stored: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.stored = stored
        self.named = named(stored) if stored else {"lm_head": DENSE}
        self.only: list[str] | None = None  # of a dense folder: what is 2:4; None: not known

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "TwofourVllmConfig":
        try:
            require_known(config)
        except TwofourError as error:
            raise ValueError(str(error)) from error
        return cls(config)

    def get_name(self) -> str:
        return VARIANT

    def get_supported_act_dtypes(self) -> list[torch.dtype]:
        return list(FLOATS.values())

    @classmethod
    def get_min_capability(cls) -> int:
        return CAPABILITY

    @staticmethod
    def get_config_filenames() -> list[str]:
        return []

    def maybe_update_config(self, model_name: str, hf_config: Any = None, revision: str | None = None) -> None:
        """Look into the folder, once it is known."""
        manifest = Path(model_name) / MANIFEST
        if self.stored is None and manifest.is_file():
            linears = json.loads(manifest.read_text(encoding="utf-8")).get("linears")
            self.only = list(linears) if isinstance(linears, dict) else None
        if self.stored and self.stored.get("lm_head") and hf_config is not None:
            hf_config.tie_word_embeddings = (
                False  # lm_head has its own values, also where it had none when it was dense
            )

    def apply_vllm_mapper(self, hf_to_vllm_mapper: Any) -> None:
        """vLLM gives some modules other names than transformers."""
        self.named = hf_to_vllm_mapper.apply_dict(self.named)
        self.only = None if self.only is None else hf_to_vllm_mapper.apply_list(self.only)

    def get_quant_method(self, layer: nn.Module, prefix: str) -> Any:
        with torch.device("cpu"):  # vLLM makes layers on its device; tables of our modules stay where they belong
            from twofour.serve.vllm_plugin import layers
        return layers.method(self, layer, prefix)

    def linears(self, prefix: str) -> list[str]:
        """The names of the linears that a layer of vLLM is made of."""
        parent, dot, last = prefix.rpartition(".")
        return [f"{parent}{dot}{name}" for name in self.packed_modules_mapping.get(last, [last])]

    def kind(self, prefix: str) -> Kind:
        """What a layer is stored as. Raises ValueError where its parts are stored in different ways."""
        kinds = {name: self._kind(name) for name in self.linears(prefix)}
        if len(set(kinds.values())) > 1:
            parts = ", ".join(f"{name} is {kind.scheme}" for name, kind in kinds.items())
            raise ValueError(
                f"vLLM makes one linear, {prefix}, of several that are stored in different ways: {parts}; store them "
                'alike, or serve it with "twofour serve"'
            )
        return next(iter(kinds.values()))

    def _kind(self, name: str) -> Kind:
        if name in self.named:
            return self.named[name]
        if self.stored:
            return default(self.stored)
        return DENSE if self.only is not None and name not in self.only else SPARSE
