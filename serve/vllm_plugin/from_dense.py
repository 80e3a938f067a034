"""A linear that is dense with zeros on disk, packed as soon as all of it was loaded (`-q twofour`).

Its weight stays on the meta device until vLLM has read it, so that no more than a few layers are dense at a time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from vllm.model_executor.layers.linear import (
    LinearMethodBase,
    UnquantizedLinearMethod,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.model_loader.reload.layerwise import initialize_online_processing
from vllm.model_executor.parameter import ModelWeightParameter
from vllm.model_executor.utils import set_weight_attrs

from twofour.prune.errors import TwofourError
from twofour.prune.format.packed import Packed, pack
from twofour.serve.vllm_plugin import intact
from twofour.serve.vllm_plugin.linear import apply, checked, give_kernel, parts_of, require_whole

CHUNK = 1 << 22  # weights packed at a time
SEEN = "twofour_seen"
DONE = "_already_called_process_weights_after_loading"  # vLLM removes it before it loads a layer again


@register_weight_loader_v2_supported_method
class TwofourFromDenseMethod(LinearMethodBase):  # type: ignore[misc]
    """names: of the linears that the layer is made of."""

    uses_meta_device = True

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
        require_whole(layer.prefix, (output_size, input_size), input_size_per_partition)
        shape = (sum(output_partition_sizes), input_size_per_partition)
        load = seen(checked(extra_weight_attrs.pop("weight_loader"), layer.prefix, "weight"))
        data = torch.empty(shape, dtype=params_dtype, device="meta")
        weight = ModelWeightParameter(data=data, input_dim=1, output_dim=0, weight_loader=load)
        layer.register_parameter("weight", weight)
        set_weight_attrs(weight, extra_weight_attrs)
        initialize_online_processing(layer)

    def process_weights_after_loading(self, layer: Any) -> None:
        if getattr(layer, DONE, False):
            return
        names, sizes = parts_of(layer, self.names)
        if not hasattr(layer.weight, SEEN):
            raise ValueError(f"the checkpoint lacks {names[0]}.weight; take an intact copy of the model")
        packed = packed_in_parts(layer.weight.data, names, sizes)
        del layer.weight
        give_kernel(layer, packed, self.dense)
        setattr(layer, DONE, True)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return apply(layer, x, bias, self.dense)


def seen(load: Callable[..., Any]) -> Callable[..., Any]:
    """A loader that marks what the first load leaves as not loaded: vLLM makes weights of memory as it is."""

    def load_seen(param: Any, loaded_weight: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not param.is_meta and not hasattr(param, SEEN):
            param.data.fill_(float("nan"))
            setattr(param, SEEN, True)
        return load(param, loaded_weight, *args, **kwargs)

    return load_seen


def packed_in_parts(weight: Tensor, names: Sequence[str], sizes: Sequence[int]) -> Packed:
    """Pack a weight [out, in] some rows at a time. Raises ValueError, naming the linear that is not 2:4."""
    parts: list[Packed] = []
    for name, rows in zip(names, weight.split(list(sizes)), strict=True):
        intact.require_loaded(rows, f"{name}.weight")
        try:
            parts += [pack(some, name) for some in rows.split(max(1, CHUNK // weight.shape[1]))]
        except TwofourError:
            raise ValueError(_fault(rows, name)) from None
    return Packed(torch.cat([part.values for part in parts]), torch.cat([part.positions for part in parts]))


def _fault(rows: Tensor, name: str) -> str:
    """What is wrong with a linear, with the number of its row."""
    try:
        pack(rows, name)
    except TwofourError as error:
        return str(error)
    return f"{name} is not 2:4"
