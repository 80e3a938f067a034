"""lm_head that is int8 in the checkpoint: loaded as it is stored, then our kernel multiplies by it.

Where no kernel takes it (on GPUs), it is expanded to the dtype of the model and is vLLM's own dense head.
"""

from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.parameter import ModelWeightParameter

from twofour.prune.errors import TwofourError
from twofour.prune.format.dense_int8 import PARTS, RUN, SCALES, VALUES, DenseInt8, validate
from twofour.serve.vllm_plugin import intact
from twofour.serve.vllm_plugin.dense_int8 import give_kernel
from twofour.serve.vllm_plugin.linear import apply, checked


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
        rows, columns = sum(output_partition_sizes), input_size_per_partition
        parts = {
            VALUES: intact.untouched(rows, columns, torch.int8),
            SCALES: intact.untouched(rows, -(-columns // RUN), torch.float32),
        }
        for part, data in parts.items():
            load = checked(extra_weight_attrs["weight_loader"], layer.prefix, part)
            parameter = ModelWeightParameter(data=data, input_dim=1, output_dim=0, weight_loader=load)
            layer.register_parameter(part, parameter)

    def process_weights_after_loading(self, layer: Any) -> None:
        packed = DenseInt8(getattr(layer, VALUES).data, getattr(layer, SCALES).data)
        try:
            validate(packed, layer.prefix)
        except TwofourError as error:
            raise ValueError(f"{error} (or the checkpoint lacks {' or '.join(PARTS)})") from error
        for part in PARTS:
            delattr(layer, part)
        give_kernel(layer, packed, self.dense)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return apply(layer, x, bias, self.dense)
