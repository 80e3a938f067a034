"""What a checkpoint lacked, or holds corrupt, seen after loading.

vLLM does not miss a tensor of a quantized model. So parameters are filled with what no checkpoint holds before they are
loaded: NaN, -128 in int8 values, zeros in positions. A part of a layer that still holds it was not loaded.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from twofour.prune.errors import TwofourError
from twofour.prune.format import dense_int8
from twofour.prune.format.dense_int8 import DenseInt8
from twofour.prune.format.packed import Packed, validate
from twofour.prune.format.weights import is_finite

NEVER = {torch.uint8: 0, torch.int8: -128}  # of positions and of int8 values; floats: NaN
CHUNK = 1 << 24  # weights checked at a time


def untouched(rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """A parameter that nothing was loaded into."""
    return torch.full((rows, columns), NEVER.get(dtype, float("nan")), dtype=dtype)


def require(packed: Packed, names: Sequence[str], sizes: Sequence[int]) -> None:
    """Raise ValueError, naming the tensor, unless all parts of a layer were loaded and are valid.

    names, sizes: of the linears that the layer is made of, and their rows here.
    """
    for name, rows in zip(names, _split(packed, sizes), strict=True):
        for part, tensor in rows.tensors().items():
            require_loaded(tensor, f"{name}.{part}")
        _require_valid(rows, name)


def require_int8(packed: DenseInt8, names: Sequence[str], sizes: Sequence[int]) -> None:
    """The same for dense weights in int8."""
    rows = zip(packed.values.split(list(sizes)), packed.scales.split(list(sizes)), strict=True)
    for name, (values, scales) in zip(names, rows, strict=True):
        part = DenseInt8(values, scales)
        for suffix, tensor in part.tensors().items():
            require_loaded(tensor, f"{name}.{suffix}")
        try:
            dense_int8.validate(part, name)
        except TwofourError as error:
            raise ValueError(str(error)) from error


def require_loaded(tensor: Tensor, name: str) -> None:
    """Raise ValueError, naming the tensor, if nothing was loaded into it."""
    if all(bool(_is_never(rows).all()) for rows in (tensor[:1], tensor)):  # the first row tells it, nearly always
        raise ValueError(f"the checkpoint lacks {name}; take an intact copy of the model")


def require_finite(tensor: Tensor, name: str) -> None:
    """Raise ValueError, naming the tensor, if it holds NaN or infinity, or was loaded in part."""
    if not is_finite(tensor):
        raise ValueError(f"{name} holds NaN or infinity; take an intact copy of the model")


def _split(packed: Packed, sizes: Sequence[int]) -> Iterator[Packed]:
    start = 0
    for size in sizes:
        yield _rows(packed, start, start + size)
        start += size


def _rows(packed: Packed, start: int, end: int) -> Packed:
    scales = None if packed.scales is None else packed.scales[start:end]
    return Packed(packed.values[start:end], packed.positions[start:end], scales, packed.scale_columns)


def _is_never(tensor: Tensor) -> Tensor:
    return torch.isnan(tensor) if tensor.is_floating_point() else tensor == NEVER[tensor.dtype]


def _require_valid(packed: Packed, name: str) -> None:
    rows, columns = packed.shape
    step = max(1, CHUNK // columns)
    for start in range(0, rows, step):
        part = _rows(packed, start, min(start + step, rows))
        try:
            validate(part, name)
        except TwofourError as error:
            raise ValueError(str(error)) from error
        if part.values.dtype == torch.int8 and int(part.values.amin()) == NEVER[torch.int8]:
            raise ValueError(f"{name}.values holds -128, int8 values are within -127 and 127; take an intact copy")
        require_finite(part.values, f"{name}.values")
