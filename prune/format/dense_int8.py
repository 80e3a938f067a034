"""A dense weight rounded to int8: symmetric, with a float32 scale for each 64 columns of a row.

    scale = max |w| / 127 of the run of 64 columns, value = round(w / scale), w is read back as value * scale

The same rule as that of 2:4 weights (`rounding`). A run of zeros has the scale 0 and the values 0.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from twofour.prune.errors import CheckpointError, NonFiniteError
from twofour.prune.format.rounding import LARGEST

RUN = 64  # columns that share a scale
CHUNK_BYTES = 16 << 20  # float32 [rows, in] at a time
VALUES, SCALES = PARTS = ("int8_values", "int8_scales")  # the names in a folder, which no older reader takes for others


@dataclass(frozen=True)
class DenseInt8:
    """values: int8 [out, in]. scales: float32 [out, ceil(in / 64)]."""

    values: Tensor
    scales: Tensor

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by the names under which a checkpoint holds them."""
        return {VALUES: self.values, SCALES: self.scales}

    def cpu(self) -> "DenseInt8":
        """The same in the memory of the CPU."""
        return DenseInt8(self.values.cpu(), self.scales.cpu())

    def unpack(self, dtype: torch.dtype = torch.float32) -> Tensor:  # [out, in]
        """Return the dense weight: each product in float32, then rounded to nearest even."""
        columns, rows = self.values.shape[1], _chunk_rows(self.values)
        parts = zip(self.values.split(rows), self.scales.split(rows), strict=True)
        return torch.cat([(v.float() * s.repeat_interleave(RUN, dim=1)[:, :columns]).to(dtype) for v, s in parts])


def int8_bytes(rows: int, columns: int) -> int:
    """The bytes of a weight [rows, columns] in this form."""
    return rows * (columns + 4 * -(-columns // RUN))


def to_dense_int8(weight: Tensor, name: str = "weight") -> DenseInt8:  # [out, in]
    """Raises NonFiniteError, naming the weight."""
    parts = [_rounded(part, name) for part in weight.split(_chunk_rows(weight))]
    return DenseInt8(torch.cat([part.values for part in parts]), torch.cat([part.scales for part in parts]))


def _chunk_rows(weight: Tensor) -> int:
    return max(1, CHUNK_BYTES // (4 * weight.shape[1]))


def _rounded(weight: Tensor, name: str) -> DenseInt8:
    if not bool(torch.isfinite(weight).all()):
        raise NonFiniteError(f"{name} holds NaN or infinity; take an intact copy of the model")
    columns = weight.shape[1]
    runs = functional.pad(weight.float(), (0, -columns % RUN)).unflatten(1, (-1, RUN))  # [out, runs, 64]
    scales = runs.abs().amax(-1) / LARGEST
    quotients = torch.where(scales[..., None] > 0, runs / scales[..., None], 0).round().clamp(-LARGEST, LARGEST)
    return DenseInt8(quotients.to(torch.int8).flatten(1)[:, :columns].contiguous(), scales)


def read(weights: Mapping[str, Tensor], name: str) -> DenseInt8:
    """Read the stored tensors of a weight. Raises CheckpointError where they are not whole, or not valid."""
    for part in PARTS:
        if f"{name}.{part}" not in weights:
            raise CheckpointError(f"{name}.{part} is missing; take an intact copy of the model")
    if f"{name}.weight" in weights:
        raise CheckpointError(f"{name} is stored twice, in int8 and as {name}.weight; take an intact copy of the model")
    packed = DenseInt8(*(weights[f"{name}.{part}"] for part in PARTS))
    validate(packed, name)
    return packed


def validate(packed: DenseInt8, name: str) -> None:
    """Raise CheckpointError, naming the weight and the place, unless dtypes, shapes, scales and values are valid."""
    if fact := _fault(packed.values, packed.scales):
        raise CheckpointError(f"{name} has {fact}; take an intact copy of the model")


def _fault(values: Tensor, scales: Tensor) -> str | None:
    if values.dtype != torch.int8 or values.dim() != 2:
        return f"values {values.dtype} {list(values.shape)}, not torch.int8 [out, in]"
    expected = [values.shape[0], -(-values.shape[1] // RUN)]
    if scales.dtype != torch.float32 or list(scales.shape) != expected:
        return f"scales {scales.dtype} {list(scales.shape)}, not torch.float32 {expected}"
    bad = ~(torch.isfinite(scales) & (scales >= 0))
    if bool(bad.any()):
        row, index = (int(i) for i in bad.nonzero()[0])
        return f"the scale {float(scales[row, index])} at row {row}, number {index}, not a finite number of at least 0"
    if values.numel() and int(values.amin()) < -LARGEST:
        row, column = (int(i) for i in (values < -LARGEST).nonzero()[0])
        return f"the value {int(values[row, column])} at row {row}, column {column}, not one within -127 and 127"
    return None
