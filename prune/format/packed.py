"""A packed 2:4 weight: half the values, and where they belong.

Each group of four inputs keeps two slots. `values` holds them in input order; `positions` holds one nibble per
group, `p0 | p1 << 2` with p0 < p1, low nibble first, so the valid nibbles are 4, 8, 9, 12, 13 and 14:

    weight     0.0  1.5  0.0  2.5 | 0.0  0.0 -3.0  0.0
    values          1.5       2.5 | 0.0      -3.0
    positions  (1, 3) = 13        | (0, 2) = 8          -> byte 0x8d

A group with fewer than two non-zeros keeps its non-zero and the lowest free index; an empty slot holds +0.0, never
-0.0; an odd last nibble is 0. So packing is a function of the weight: same weight, same bytes. Packing refuses what
is not 2:4; it never prunes.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from twofour.prune.errors import CheckpointError, NonFiniteError
from twofour.prune.format import pattern
from twofour.prune.format.pattern import GROUP, KEEP

VALID_NIBBLES = (4, 8, 9, 12, 13, 14)
FLOAT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
VALUE_DTYPES = (*FLOAT_DTYPES, torch.int8)


def _nibble(occupied: int) -> int:
    """The nibble of a group whose non-zeros are the set bits: they, then the lowest free indices."""
    order = sorted(range(GROUP), key=lambda i: not occupied >> i & 1)
    first, second = sorted(order[:KEEP])
    return first | second << 2


_NIBBLE_OF = torch.tensor([_nibble(occupied) for occupied in range(1 << GROUP)], dtype=torch.uint8)
_IS_VALID = torch.zeros(16, dtype=torch.bool)
_IS_VALID[list(VALID_NIBBLES)] = True


@dataclass(frozen=True)
class Packed:
    """A 2:4 weight of shape [out, in] as it is stored.

    values: [out, in / 2], bfloat16, float16, float32 or int8.
    positions: uint8 [out, ceil(in / 8)].
    scales: float32 [out, ceil(in / scale_columns)] with int8 values, else None; scale_columns 0 means one per row.
    A weight is its value times the scale of its column, in float32.
    """

    values: Tensor
    positions: Tensor
    scales: Tensor | None = None
    scale_columns: int = 0

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the dense weight, (out, in)."""
        return self.values.shape[0], self.values.shape[1] * GROUP // KEEP

    @property
    def nbytes(self) -> int:
        """Bytes of the stored tensors."""
        return sum(tensor.nbytes for tensor in self.tensors().values())

    def tensors(self) -> dict[str, Tensor]:
        """The stored tensors by the names under which a checkpoint holds them."""
        scales = {} if self.scales is None else {"scales": self.scales}
        return {"values": self.values, "positions": self.positions, **scales}

    def cpu(self) -> "Packed":
        """The same in the memory of the CPU."""
        scales = None if self.scales is None else self.scales.cpu()
        return Packed(self.values.cpu(), self.positions.cpu(), scales, self.scale_columns)

    def unpack(self) -> Tensor:
        """Return the dense weight with zeros, [out, in], in the dtype of the values (float32 for int8)."""
        kept = self.values if self.scales is None else self._rescaled(self.scales)
        out, columns = self.shape
        weight = kept.new_zeros(out, columns // GROUP, GROUP)
        weight.scatter_(-1, self.slots(), kept.unflatten(-1, (-1, KEEP)))
        return weight.flatten(-2)

    def slots(self) -> Tensor:  # int64 [out, in / 4, 2]
        """Return which two of its four inputs each group keeps, in ascending order."""
        nibbles = split_nibbles(self.positions)[:, : self.shape[1] // GROUP].long()
        return torch.stack((nibbles & 3, nibbles >> 2), dim=-1)

    def _rescaled(self, scales: Tensor) -> Tensor:
        if not self.scale_columns:
            return self.values.float() * scales
        spread = scales.repeat_interleave(self.scale_columns * KEEP // GROUP, dim=1)
        return self.values.float() * spread[:, : self.values.shape[1]]


def pack(weight: Tensor, name: str = "weight") -> Packed:
    """Pack a finite 2:4 weight [out, in]. Raises PatternError or NonFiniteError, naming it."""
    if not bool(torch.isfinite(weight).all()):
        raise NonFiniteError(f"{name} holds NaN or infinity; take an intact copy of the model")
    pattern.require(weight, name)
    grouped = pattern.groups(weight)  # [out, in / 4, 4]
    bits = torch.tensor([1, 2, 4, 8], dtype=torch.uint8, device=weight.device)
    occupied = ((grouped != 0) * bits).sum(-1, dtype=torch.uint8)
    nibbles = _NIBBLE_OF.to(weight.device)[occupied.long()]  # [out, in / 4]
    slots = torch.stack((nibbles & 3, nibbles >> 2), dim=-1).long()
    kept = grouped.gather(-1, slots)
    values = torch.where(kept == 0, torch.zeros_like(kept), kept).flatten(-2)
    return Packed(values.contiguous(), join_nibbles(nibbles))


def scale_count(columns: int, scale_columns: int) -> int:
    """How many scales a row of so many columns has."""
    return -(-columns // scale_columns) if scale_columns else 1


def join_nibbles(nibbles: Tensor) -> Tensor:  # uint8 [out, n] -> uint8 [out, ceil(n / 2)]
    """Store two nibbles a byte, the low one first; an odd last byte has a high nibble of 0."""
    if nibbles.shape[1] % 2:
        nibbles = torch.cat((nibbles, nibbles.new_zeros(nibbles.shape[0], 1)), dim=1)
    return nibbles[:, ::2] | nibbles[:, 1::2] << 4


def split_nibbles(positions: Tensor) -> Tensor:  # uint8 [out, n] -> uint8 [out, 2 n]
    """The inverse of `join_nibbles`, an odd tail included."""
    return torch.stack((positions & 15, positions >> 4), dim=-1).flatten(-2)


def validate(packed: Packed, name: str) -> None:
    """Raise CheckpointError unless dtypes, shapes, scales and positions are valid.

    It does not look at the values: whether they are finite, or whether `pack` would have placed them so.
    """
    values, positions = packed.values, packed.positions
    if values.dtype not in VALUE_DTYPES or positions.dtype != torch.uint8:
        raise CheckpointError(f"{name} has dtypes {values.dtype} and {positions.dtype}; the file is corrupt")
    fits = values.dim() == 2 and values.shape[1] % KEEP == 0
    if not fits or positions.shape != (values.shape[0], -(-packed.shape[1] // 8)):
        shapes = f"{list(values.shape)} and positions {list(positions.shape)}"
        raise CheckpointError(f"{name} has values {shapes}, which do not fit together; the file is corrupt")
    _validate_scales(packed, name)
    _validate_nibbles(positions, packed.shape[1] // GROUP, name)


def _validate_scales(packed: Packed, name: str) -> None:
    (rows, columns), scales = packed.shape, packed.scales
    if (packed.values.dtype == torch.int8) != (scales is not None):
        raise CheckpointError(f"{name} needs scales exactly if its values are int8; the file is corrupt")
    if scales is None:
        return
    if packed.scale_columns < 0 or packed.scale_columns % GROUP:
        raise CheckpointError(f"{name} has scale_columns {packed.scale_columns}, not 0 or a multiple of {GROUP}")
    expected = (rows, scale_count(columns, packed.scale_columns))
    if scales.dtype != torch.float32 or scales.shape != expected:
        found = f"{scales.dtype} {list(scales.shape)}"
        raise CheckpointError(f"{name} has scales {found}, not torch.float32 {list(expected)}; the file is corrupt")
    bad = ~(torch.isfinite(scales) & (scales >= 0))
    if bool(bad.any()):
        row, index = (int(i) for i in bad.nonzero()[0])
        fact = f"the scale {float(scales[row, index])} at row {row}, number {index}"
        raise CheckpointError(f"{name} has {fact}; scales are finite and not negative, the file is corrupt")


def _validate_nibbles(positions: Tensor, count: int, name: str) -> None:
    if count % 2 == 0 and bool(_are_ascending(positions).all()):
        return
    nibbles = split_nibbles(positions)
    bad = ~_IS_VALID.to(positions.device)[nibbles.long()]
    bad[:, count:] = nibbles[:, count:] != 0
    if bool(bad.any()):
        row, group = (int(i) for i in bad.nonzero()[0])
        raise CheckpointError(
            f"{name} has the invalid position nibble {int(nibbles[row, group])} at row {row}, group {group}; "
            "the file is corrupt: take an intact copy or prune again"
        )


def _are_ascending(positions: Tensor) -> Tensor:  # uint8 -> bool
    """Whether both nibbles of a byte are valid, with nothing larger than the bytes: bit 3 of p1 + 8 - p0 - 1."""
    first, second = positions & 0x33, positions >> 2 & 0x33
    return ((second | 0x88) - first - 0x11) & 0x88 == 0x88
