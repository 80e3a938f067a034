"""A packed 2:4 weight as the Triton kernels read it, made at load from the canonical tensors.

The values stay as they are: row-major, two per group, shared with the checkpoint's tensor (and with whatever else
reads plain rows) where the row is a multiple of 64 columns and the memory aligned, else copied into padded rows.
The positions become codes, 1..3 for (1 2) (1 3) (2 3) and 4..6 for (0 1) (0 2) (0 3); ptx.py says why. A row is
cut into four quarters of `quarter` groups; word q of its codes holds those of the groups q, quarter + q,
2 quarter + q and 3 quarter + q, 4 bits each:

    values  bfloat16 or float16 [rows, 8 * quarter]     16 bits a kept value
    codes   int16               [rows, quarter]         4 bits a group: 1.125 bytes per dense weight in all
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from twofour.prune.errors import InputError
from twofour.prune.format.packed import Packed, join_nibbles, split_nibbles, validate
from twofour.serve.kernels.triton import plan

DTYPES = (torch.bfloat16, torch.float16)
ALIGNMENT_BYTES = 16  # of an asynchronous copy
_MAX_ROWS = 65535 * plan.MIN_ROW_TILE  # the grid's second dimension
_MAX_COLUMNS = 2**31 // plan.MAX_TOKENS // 2  # the inputs of a call are addressed by 32 bits
_COLUMNS_PER_BLOCK = 64  # four quarters of whole 16-byte copies
_INTERPRETED = (132, (9, 0))  # the processors and the capability that Triton's interpreter stands for

PAIRS = {1: (1, 2), 2: (1, 3), 3: (2, 3), 4: (0, 1), 5: (0, 2), 6: (0, 3)}  # the positions of a code
_NIBBLE_OF = torch.zeros(16, dtype=torch.uint8)
_CODE_OF = torch.zeros(16, dtype=torch.uint8)
for _code, (_first, _second) in PAIRS.items():
    _NIBBLE_OF[_code] = _first | _second << 2
    _CODE_OF[_first | _second << 2] = _code


@dataclass(frozen=True)
class TritonWeight:
    """A weight on its device. Calls on one weight share `arrivals`: they must follow each other, on one stream."""

    values: Tensor  # [rows, 8 * quarter]
    codes: Tensor  # int16 [rows, quarter]
    arrivals: Tensor  # int32, a counter per tile, zero between calls
    columns: int
    splits: int

    @classmethod
    def from_packed(cls, packed: Packed) -> "TritonWeight":
        """Lay a weight out on the device it is on. Raises InputError where `refuses` has a reason."""
        if reason := refuses(packed):
            raise InputError(f"{reason}; use another kernel for this weight")
        validate(packed, "weight")
        rows, columns = packed.shape
        quarter = padded(columns) // 16
        device = packed.values.device
        arrivals = torch.zeros(plan.counters(rows), dtype=torch.int32, device=device)
        count = plan.splits(rows, quarter, *traits(device))
        return cls(_rows_of_values(packed.values, quarter), _codes(packed, quarter), arrivals, columns, count)

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the dense weight, (out, in)."""
        return self.values.shape[0], self.columns

    def packed(self) -> Packed:
        """Return the stored tensors: the values, shared where they are, and the positions, both bit for bit."""
        groups = self.columns // 4
        quarters = [self.codes >> shift & 7 for shift in (0, 4, 8, 12)]
        codes = torch.cat(quarters, dim=1)[:, :groups].long()
        nibbles = _NIBBLE_OF.to(codes.device)[codes]
        return Packed(self.values[:, : 2 * groups].contiguous(), join_nibbles(nibbles))

    @property
    def nbytes(self) -> int:
        """Bytes that the kernel's tensors hold, shared values included."""
        return self.values.nbytes + self.codes.nbytes + self.arrivals.nbytes


def refuses(packed: Packed) -> str | None:
    """Say why the kernels cannot multiply by this weight, or None where they can."""
    rows, columns = packed.shape
    if packed.values.dtype not in DTYPES:
        return f"the Triton kernels take bfloat16 and float16 values, got {packed.values.dtype}"
    if not rows or not columns:
        return f"the Triton kernels take no empty weight, got {rows} x {columns}"
    if rows > _MAX_ROWS:
        return f"the Triton kernels take up to {_MAX_ROWS} rows, got {rows}"
    if columns > _MAX_COLUMNS:
        return f"the Triton kernels take up to {_MAX_COLUMNS} columns, got {columns}"
    return None


def padded(columns: int) -> int:
    """Round up to whole blocks."""
    return -(-columns // _COLUMNS_PER_BLOCK) * _COLUMNS_PER_BLOCK


def aligned(tensor: Tensor) -> Tensor:
    """Make a tensor contiguous and aligned for vector loads; one that is both is returned itself."""
    tensor = tensor.contiguous()
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT_BYTES else tensor


def _rows_of_values(values: Tensor, quarter: int) -> Tensor:
    missing = 8 * quarter - values.shape[1]
    return aligned(F.pad(values, (0, missing)) if missing else values)


def _codes(packed: Packed, quarter: int) -> Tensor:
    groups = packed.shape[1] // 4
    nibbles = split_nibbles(packed.positions)[:, :groups]
    codes = _CODE_OF.to(nibbles.device)[nibbles.int()].to(torch.int16)  # [rows, groups]
    first, second, third, fourth = F.pad(codes, (0, 4 * quarter - groups)).split(quarter, dim=1)
    return (first | second << 4 | third << 8 | fourth << 12).contiguous()


def traits(device: torch.device) -> tuple[int, plan.Capability]:
    """Return the number of processors and the compute capability."""
    if device.type != "cuda":
        return _INTERPRETED
    return torch.cuda.get_device_properties(device).multi_processor_count, torch.cuda.get_device_capability(device)
