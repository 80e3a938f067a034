"""lm_head that is int8 in the checkpoint: loaded as it is stored, then our kernel multiplies by it.

Where no kernel takes it (on GPUs), it is expanded to the dtype of the model and is vLLM's own dense head.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod

from twofour.prune.errors import TwofourError
from twofour.prune.format.dense_int8 import PARTS, validate
from twofour.serve.vllm_plugin.dense_int8 import expect, give_kernel, loaded
from twofour.serve.vllm_plugin.linear import apply


class TwofourHeadMethod(QuantizeMethodBase):  # type: ignore[misc]
    def __init__(self) -> None:
        self.dense = UnquantizedEmbeddingMethod()

    def create_weights(
        self,
        layer: Any,
        input_size_per_partition: int,
        output_partition_sizes: list[int],
        input_size: int,
        output_size: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: Any,
    ) -> None:
        expect(layer, sum(output_partition_sizes), input_size_per_partition, extra_weight_attrs["weight_loader"])

    def process_weights_after_loading(self, layer: Any) -> None:
        packed = loaded(layer)
        try:
            validate(packed, layer.prefix)
        except TwofourError as error:
            raise ValueError(f"{error} (or the checkpoint lacks {' or '.join(PARTS)})") from error
        give_kernel(layer, packed, self.dense)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return apply(layer, x, bias, self.dense)
