"""A linear of vLLM whose weight is 2:4.

Its parameters have the names and the layout of the checkpoint, `values`, `positions` and perhaps `scales`, so vLLM's
own loaders fill them, also those of layers that are several linears on disk or were split over ranks. Then they give
way to a kernel. Its tensors are `weight_packed` (the name by which vLLM's LoRA layers look for the device of a weight),
`weight_packed_1` and so on. Where dense was faster, or no kernel takes the weight, it is vLLM's own dense linear.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from vllm.logger import init_logger
from vllm.model_executor.layers.linear import (
    LinearMethodBase,
    UnquantizedLinearMethod,
    register_weight_loader_v2_supported_method,
)
from vllm.model_executor.parameter import ChannelQuantScaleParameter, ModelWeightParameter
from vllm.model_executor.utils import set_weight_attrs

from twofour.prune.format.packed import Packed, scale_count
from twofour.prune.format.pattern import GROUP, KEEP
from twofour.prune.format.quantization import Kind, value_dtype
from twofour.serve.kernels import select
from twofour.serve.kernels.dense import DenseKernel
from twofour.serve.kernels.reference import ReferenceKernel
from twofour.serve.kernels.triton.kernel import TritonKernel
from twofour.serve.vllm_plugin import intact, op

BYTE = 8  # inputs whose positions share a byte
HANDLE, KERNEL = "weight_packed", "twofour_kernel"
log = init_logger("vllm.twofour")  # vLLM shows what its own loggers say


@register_weight_loader_v2_supported_method
class TwofourLinearMethod(LinearMethodBase):  # type: ignore[misc]
    """names: of the linears that the layer is made of. kind: what they are stored as."""

    def __init__(self, names: Sequence[str], kind: Kind) -> None:
        self.names = names
        self.is_int8 = kind.scheme == "2:4-int8"
        self.dtype = value_dtype(kind.dtype)
        self.scale_columns = kind.scale_columns
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
        require_whole(layer.prefix, (output_size, input_size), columns, self.scale_columns)
        load = extra_weight_attrs.pop("weight_loader")
        values = intact.untouched(rows, columns * KEEP // GROUP, self.dtype if self.is_int8 else params_dtype)
        parts = {"values": values, "positions": intact.untouched(rows, -(-columns // BYTE), torch.uint8)}
        if self.is_int8:
            parts["scales"] = intact.untouched(rows, scale_count(columns, self.scale_columns), torch.float32)
        for part, data in parts.items():
            layer.register_parameter(part, self._parameter(part, data, checked(load, layer.prefix, part)))
            set_weight_attrs(getattr(layer, part), extra_weight_attrs)

    def process_weights_after_loading(self, layer: Any) -> None:
        scales = layer.scales.data if self.is_int8 else None
        packed = Packed(layer.values.data, layer.positions.data, scales, self.scale_columns)
        intact.require(packed, *parts_of(layer, self.names))
        for part in packed.tensors():
            delattr(layer, part)
        give_kernel(layer, packed, self.dense)

    def apply(self, layer: Any, x: Tensor, bias: Tensor | None = None) -> Tensor:
        return apply(layer, x, bias, self.dense)

    def _parameter(self, part: str, data: Tensor, load: Callable[..., Any]) -> Any:
        if part == "scales" and not self.scale_columns:  # one for each row: every rank has it whole
            return ChannelQuantScaleParameter(data=data, output_dim=0, weight_loader=load)
        return ModelWeightParameter(data=data, input_dim=1, output_dim=0, weight_loader=load)


def require_whole(name: str, shape: tuple[int, int], columns: int, scale_columns: int = 0) -> None:
    """Raise ValueError if inputs [columns] of a rank end within what is stored together."""
    ranks, multiple = shape[1] // columns, max(BYTE, scale_columns)
    if ranks > 1 and columns % multiple:
        raise ValueError(
            f"{name} {list(shape)} cannot be split over {ranks} ranks: {columns} inputs each is not a multiple of "
            f"{multiple}, which are stored together; choose another --tensor-parallel-size"
        )
    if columns % GROUP:
        raise ValueError(f"{name} has {columns} inputs, 2:4 needs a multiple of {GROUP}; take an intact copy")


def parts_of(layer: Any, names: Sequence[str]) -> tuple[Sequence[str], Sequence[int]]:
    """The names of the linears of a layer and their rows here."""
    sizes = list(layer.output_partition_sizes)
    return (names, sizes) if len(names) == len(sizes) else ([layer.prefix], [sum(sizes)])


def checked(load: Callable[..., Any], name: str, part: str) -> Callable[..., Any]:
    """A loader that does not cast between floats and integers, and names what does not fit."""

    def load_checked(param: Any, loaded_weight: Tensor, *args: Any, **kwargs: Any) -> Any:
        fact = f"{name} does not take {part} that are {loaded_weight.dtype} {list(loaded_weight.shape)}"
        if loaded_weight.dtype != param.dtype and not (loaded_weight.is_floating_point() and param.is_floating_point()):
            raise ValueError(f"{fact}, but {param.dtype}; take an intact copy of the model")
        try:
            return load(param, loaded_weight, *args, **kwargs)
        except (AssertionError, RuntimeError, IndexError) as error:
            raise ValueError(f"{fact}, here {list(param.shape)}; take an intact copy of the model") from error

    return load_checked


def give_kernel(layer: Any, packed: Packed, dense: Any) -> None:
    """Lay a weight out for the kernel that is fastest here, or for vLLM's own dense linear."""
    with as_in_our_server():
        choice = select.choose(packed, "auto", layer.params_dtype)
        kernel = choice.kernel
        if isinstance(kernel, TritonKernel):  # compiles now, not while a CUDA graph is captured
            for bias in {None, layer.bias}:  # ranks other than the first leave it away
                kernel.prepare(bias)
    say(packed, choice)
    if isinstance(kernel, DenseKernel | ReferenceKernel):
        layer.weight = nn.Parameter(kernel.weight.to(layer.params_dtype), requires_grad=False)
        dense.process_weights_after_loading(layer)
        return
    hold(layer, kernel, packed.shape[0])


def say(packed: Packed, choice: select.Choice) -> None:
    """Write to the log, once for each shape, what multiplies."""
    values = str(packed.values.dtype).removeprefix("torch.")
    why = "; ".join(filter(None, (choice.note, *choice.dropped)))
    kernel = f"{choice.kernel.name} ({why})" if why else choice.kernel.name
    log.info_once("2:4 linears %s %s: %s", tuple(packed.shape), values, kernel)


def hold(layer: Any, kernel: op.Product, rows: int) -> None:
    """Keep a kernel and its tensors with a layer, for `apply`. Weights that are loaded again are copied into them."""
    if hasattr(layer, KERNEL):
        kernel = op.copied(kernel, getattr(layer, KERNEL))
    else:
        op.keep(kernel, layer)
    setattr(layer, KERNEL, kernel)
    layer.twofour_rows = rows
    for index, tensor in enumerate(op.tensors(kernel)):
        name = f"{HANDLE}_{index}" if index else HANDLE
        layer.register_parameter(name, nn.Parameter(tensor, requires_grad=False))


def apply(layer: Any, x: Tensor, bias: Tensor | None, dense: Any) -> Tensor:  # [..., in] -> [..., out]
    """Multiply by the kernel of a layer, or by its dense weight as vLLM does."""
    if hasattr(layer, HANDLE):
        return op.linear24(x, layer.weight_packed, bias, layer.twofour_rows)
    product: Tensor = dense.apply(layer, x, bias)
    return product


@contextmanager
def as_in_our_server() -> Iterator[None]:
    """vLLM loads with the model's dtype and device as torch's defaults; our kernels expect torch's own."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        with torch.device("cpu"):
            yield
    finally:
        torch.set_default_dtype(before)
