"""A linear that is dense in int8 in the checkpoint: loaded as it is stored, then our kernel multiplies by it.

Where no kernel takes it (on GPUs), it is expanded to the dtype of the model and is vLLM's own dense linear.
"""

from collections.abc import Callable, Sequence
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
        require_whole(layer.prefix, (output_size, input_size), input_size_per_partition, RUN)
        expect(layer, sum(output_partition_sizes), input_size_per_partition, extra_weight_attrs.pop("weight_loader"))
        for part in PARTS:
            set_weight_attrs(getattr(layer, part), extra_weight_attrs)

    def process_weights_after_loading(self, layer: Any) -> None:
        packed = loaded(layer)
        intact.require_int8(packed, *parts_of(layer, self.names))
        give_kernel(layer, packed, self.dense)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return apply(layer, x, bias, self.dense)


def expect(layer: Any, rows: int, columns: int, load: Callable[..., Any]) -> None:
    """Give a layer the parameters that a weight [rows, columns] is stored in."""
    empty = {VALUES: (columns, torch.int8), SCALES: (-(-columns // RUN), torch.float32)}
    for part, (width, dtype) in empty.items():
        data, loader = intact.untouched(rows, width, dtype), checked(load, layer.prefix, part)
        parameter = ModelWeightParameter(data=data, input_dim=1, output_dim=0, weight_loader=loader)
        layer.register_parameter(part, parameter)


def loaded(layer: Any) -> DenseInt8:
    """The weight that vLLM has loaded into these parameters."""
    return DenseInt8(getattr(layer, VALUES).data, getattr(layer, SCALES).data)


def give_kernel(layer: Any, packed: DenseInt8, dense: Any) -> None:
    """Lay a weight out for our kernel, or for vLLM's own dense layer; its parameters give way to that."""
    for part in PARTS:
        delattr(layer, part)
    is_ours = takes(packed, "auto")
    log.info_once("dense int8 %s: %s", tuple(packed.values.shape), DenseInt8Kernel.name if is_ours else "expanded")
    if is_ours:
        with as_in_our_server():
            hold(layer, DenseInt8Kernel.from_int8(packed), packed.values.shape[0])
        return
    layer.weight = nn.Parameter(packed.unpack(layer.params_dtype), requires_grad=False)
    dense.process_weights_after_loading(layer)
