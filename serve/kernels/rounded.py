"""int8 values where no kernel takes them: each times its scale, rounded once to the dtype of the activations.

The kernels for that dtype then multiply, 2:4 where they can, and the weight takes a little more than half of dense;
less than dense while it is loaded, too. Rounding loses nothing that was stored: a value of up to 8 bits times its
scale, rounded to 8 bits or more, is less than half a step of the scale away. This is checked for every weight. If it
does not hold, since a product is out of the range of the dtype, the int8 values are kept as well.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from twofour.prune.format.packed import Packed
from twofour.prune.format.pattern import GROUP, KEEP


@dataclass(frozen=True)
class Rounded:
    """Gives back the stored weight. `values` is None if they can be computed from the rounded ones."""

    values: Tensor | None  # int8 [out, in / 2]
    positions: Tensor
    scales: Tensor
    scale_columns: int

    @property
    def nbytes(self) -> int:
        return sum(t.nbytes for t in (self.values, self.positions, self.scales) if t is not None)

    def stored(self, held: Packed) -> Packed:
        """The int8 weight, from what the kernel holds of it: where that is zero its positions may differ."""
        values = _unrounded(held, self) if self.values is None else self.values
        return Packed(values, self.positions, self.scales, self.scale_columns)


def rounded(packed: Packed, dtype: torch.dtype) -> tuple[Packed, Rounded]:
    """An int8 weight in a float dtype, and the means to get it back."""
    assert packed.scales is not None
    held = Packed((packed.values * _spread(packed.scales, packed)).to(dtype), packed.positions)
    back = Rounded(None, packed.positions, packed.scales, packed.scale_columns)
    is_enough = torch.equal(_unrounded(held, back), packed.values)
    return held, back if is_enough else replace(back, values=packed.values)


def _spread(scales: Tensor, packed: Packed) -> Tensor:  # float32 [out, 1 or in / 2]
    if scales.shape[1] == 1:
        return scales
    spread = scales.repeat_interleave(packed.scale_columns * KEEP // GROUP, dim=1)
    return spread[:, : packed.values.shape[1]]


def _unrounded(held: Packed, back: Rounded) -> Tensor:  # int8 [out, in / 2]
    known = Packed(held.values, back.positions, scale_columns=back.scale_columns)
    if not torch.equal(held.positions, back.positions):
        known = replace(known, values=held.unpack().unflatten(-1, (-1, GROUP)).gather(-1, known.slots()).flatten(-2))
    steps = known.values.float() / _spread(back.scales, known)
    return steps.nan_to_num_(0.0).round_().clamp_(-128, 127).to(torch.int8)
