"""A dense weight rounded to int8: symmetric, with a float32 scale for each 64 columns of a row.

    scale = max |w| / 127 of the run of 64 columns, value = round(w / scale), w is read back as value * scale

The same rule as that of 2:4 weights (`rounding`). A run of zeros has the scale 0 and the values 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from twofour.prune.errors import NonFiniteError
from twofour.prune.format.rounding import LARGEST

RUN = 64  # columns that share a scale


@dataclass(frozen=True)
class DenseInt8:
    """values: int8 [out, in]. scales: float32 [out, ceil(in / 64)]."""

    values: Tensor
    scales: Tensor

    @property
    def nbytes(self) -> int:
        return self.values.nbytes + self.scales.nbytes

    def unpack(self) -> Tensor:  # float32 [out, in]
        columns = self.values.shape[1]
        return self.values.float() * self.scales.repeat_interleave(RUN, dim=1)[:, :columns]


def to_dense_int8(weight: Tensor, name: str = "weight") -> DenseInt8:  # [out, in]
    """Raises NonFiniteError, naming the weight."""
    if not bool(torch.isfinite(weight).all()):
        raise NonFiniteError(f"{name} holds NaN or infinity; take an intact copy of the model")
    columns = weight.shape[1]
    runs = functional.pad(weight.float(), (0, -columns % RUN)).unflatten(1, (-1, RUN))  # [out, runs, 64]
    scales = runs.abs().amax(-1) / LARGEST
    quotients = torch.where(scales[..., None] > 0, runs / scales[..., None], 0).round().clamp(-LARGEST, LARGEST)
    return DenseInt8(quotients.to(torch.int8).flatten(1)[:, :columns].contiguous(), scales)
