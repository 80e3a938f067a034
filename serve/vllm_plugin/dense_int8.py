"""A linear that is dense in int8 in the checkpoint: loaded as it is stored, then our kernel multiplies by it.

Where no kernel takes it (on GPUs), it is expanded to the dtype of the model and is vLLM's own dense linear.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from vllm.model_executor.layers.linear import (
    LinearMethodBase,
    UnquantizedLinearMethod,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.parameter import ModelWeightParameter
from vllm.model_executor.utils import set_weight_attrs

from twofour.prune.format.dense_int8 import PARTS, RUN, SCALES, VALUES, DenseInt8
from twofour.serve.kernels.dense_int8 import DenseInt8Kernel, takes
from twofour.serve.vllm_plugin import intact
from twofour.serve.vllm_plugin.linear import apply, as_in_our_server, checked, hold, log, parts_of, require_whole


@register_weight_loader_v2_supported_method
class TwofourDenseInt8Method(LinearMethodBase):  # type: ignore[misc]
    """names: of the linears that the layer is made of."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.dense = UnquantizedLinearMethod()

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
        require_whole(layer.prefix, (output_size, input_size), columns, RUN)
        load = extra_weight_attrs.pop("weight_loader")
        empty = {VALUES: (columns, torch.int8), SCALES: (-(-columns // RUN), torch.float32)}
        for part, (width, dtype) in empty.items():
            data = intact.untouched(rows, width, dtype)
            loader = checked(load, layer.prefix, part)
            layer.register_parameter(
                part, ModelWeightParameter(data=data, input_dim=1, output_dim=0, weight_loader=loader)
            )
            set_weight_attrs(getattr(layer, part), extra_weight_attrs)

    def process_weights_after_loading(self, layer: Any) -> None:
        packed = DenseInt8(getattr(layer, VALUES).data, getattr(layer, SCALES).data)
        intact.require_int8(packed, *parts_of(layer, self.names))
        for part in PARTS:
            delattr(layer, part)
        give_kernel(layer, packed, self.dense)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return apply(layer, x, bias, self.dense)


def give_kernel(layer: Any, packed: DenseInt8, dense: Any) -> None:
    """Lay a weight out for our kernel, or for vLLM's own dense layer."""
    is_ours = takes(packed, "auto")
    log.info_once("dense int8 %s: %s", tuple(packed.values.shape), DenseInt8Kernel.name if is_ours else "expanded")
    if is_ours:
        with as_in_our_server():
            hold(layer, DenseInt8Kernel.from_int8(packed), packed.values.shape[0])
        return
    layer.weight = nn.Parameter(packed.unpack(layer.params_dtype), requires_grad=False)
    dense.process_weights_after_loading(layer)
