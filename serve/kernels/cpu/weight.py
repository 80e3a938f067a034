"""A weight in a device layout of the CPU kernels: one tensor of bytes, made at load and never stored.

The layouts are drawn in src/layout.h. A 2:4 weight takes 1.125 bytes for each dense weight with bfloat16 values,
0.625 with int8 values and a scale for each row, 0.6875 with a scale for each 64 columns. A dense weight in int8 takes
1.0625.
"""

from dataclasses import dataclass
from enum import IntEnum

import torch
from torch import Tensor
from torch.nn import functional

from twofour.prune.errors import InputError, ServerError
from twofour.prune.format.dense_int8 import DenseInt8
from twofour.prune.format.packed import Packed, scale_count, validate
from twofour.serve.kernels.cpu.extension import Extension, loaded, missing

BLOCK_ROWS, BLOCK_COLUMNS = 8, 64
CELL_COLUMNS = 4  # of a dense int8 weight: 8 rows of so many lie together
SCALE_COLUMNS = (0, BLOCK_COLUMNS)  # that share a scale of int8 values; 0: all of a row


class Kind(IntEnum):
    """The numbers of src/layout.h."""

    SPARSE_BF16 = 0
    SPARSE_INT8 = 1
    SPARSE_INT8_BLOCK_SCALES = 2
    DENSE_BF16 = 3
    DENSE_INT8 = 4


@dataclass(frozen=True)
class CpuWeight:
    """A weight of shape [rows, columns] as the CPU kernels read it."""

    data: Tensor  # uint8, one dimension
    rows: int
    columns: int
    kind: Kind

    @property
    def nbytes(self) -> int:
        return self.data.nbytes

    @classmethod
    def from_packed(cls, packed: Packed) -> "CpuWeight":
        """Refuses corrupt positions, and values that are neither bfloat16 nor int8: expand those to dense."""
        validate(packed, "weight")
        kind, (rows, columns) = _kind_of(packed), packed.shape
        cpu = require()
        data = torch.empty(cpu.layout_bytes(kind, rows, columns), dtype=torch.uint8)
        _pack(cpu, packed, kind, data)
        return cls(data, rows, columns, kind)

    @classmethod
    def from_dense(cls, weight: Tensor) -> "CpuWeight":  # [rows, columns]
        """Shares the memory of a contiguous weight whose columns are a multiple of 64."""
        if weight.dtype != torch.bfloat16 or weight.dim() != 2 or weight.device.type != "cpu":
            raise InputError(
                f"the dense CPU kernel takes a bfloat16 matrix on the CPU, got {weight.dtype} "
                f"{list(weight.shape)} on {weight.device}; use torch's linear for it"
            )
        rows, columns = weight.shape
        padding = -columns % BLOCK_COLUMNS
        padded = functional.pad(weight.detach(), (0, padding)) if padding else weight.detach().contiguous()
        return cls(padded.view(torch.uint8).flatten(), rows, columns, Kind.DENSE_BF16)

    @classmethod
    def from_dense_int8(cls, packed: DenseInt8) -> "CpuWeight":
        rows, columns = packed.values.shape
        data = torch.empty(require().layout_bytes(Kind.DENSE_INT8, rows, columns), dtype=torch.uint8)
        weight = cls(data, rows, columns, Kind.DENSE_INT8)
        for part, stored in zip(weight._dense_int8_parts(), (packed.values, packed.scales), strict=True):
            part_rows, part_columns = part.shape[0] * part.shape[1], part[0, 0].numel()
            padding = (0, part_columns - stored.shape[1], 0, part_rows - rows)
            part.copy_(functional.pad(stored.detach().cpu(), padding).view_as(part))
        return weight

    def to_dense_int8(self) -> DenseInt8:
        """Return the dense int8 weight as it was packed, bit for bit."""
        self._require_kind(self.kind is Kind.DENSE_INT8, "dense int8", "from_dense_int8")
        values, scales = (part.flatten(0, 1).flatten(1)[: self.rows] for part in self._dense_int8_parts())
        return DenseInt8(values[:, : self.columns].contiguous(), scales.contiguous())

    def _dense_int8_parts(self) -> tuple[Tensor, Tensor]:
        """Views of the bytes: values [row blocks, 8, column blocks, 16, 4], scales [row blocks, 8, column blocks]."""
        blocks = self.data.view(-(-self.rows // BLOCK_ROWS), -(-self.columns // BLOCK_COLUMNS), -1)
        values, scales = blocks.split((BLOCK_ROWS * BLOCK_COLUMNS, BLOCK_ROWS * 4), dim=2)
        by_cell = values.view(torch.int8).unflatten(2, (-1, BLOCK_ROWS, CELL_COLUMNS))
        return by_cell.movedim(3, 1), scales.view(torch.float32).movedim(2, 1)

    def to_packed(self) -> Packed:
        """Return the 2:4 weight as it was packed, bit for bit."""
        self._require_kind(self.kind < Kind.DENSE_BF16, "2:4", "from_packed")
        packed = _empty_packed(self.kind, self.rows, self.columns)
        _unpack(require(), self, packed)
        return packed

    def _require_kind(self, is_it: bool, what: str, maker: str) -> None:
        if not is_it or self.data.numel() != require().layout_bytes(self.kind, self.rows, self.columns):
            raise InputError(
                f"{self.data.numel()} bytes of kind {self.kind.name} are no {what} weight of {self.rows} x "
                f"{self.columns}; build it with CpuWeight.{maker}"
            )


def require() -> Extension:
    """The compiled module. Raises ServerError, with the reason, where no kernel can run."""
    cpu, reason = loaded(), missing()
    if cpu is None or reason:
        raise ServerError(f"no CPU kernel: {reason}")
    return cpu


def _kind_of(packed: Packed) -> Kind:
    if packed.values.dtype == torch.bfloat16:
        return Kind.SPARSE_BF16
    if packed.values.dtype == torch.int8 and packed.scale_columns in SCALE_COLUMNS:
        return Kind.SPARSE_INT8_BLOCK_SCALES if packed.scale_columns else Kind.SPARSE_INT8
    raise InputError(
        f"the CPU kernels take bfloat16 values, or int8 values with a scale for each row or each {BLOCK_COLUMNS} "
        f"columns, got {packed.values.dtype} with scale_columns {packed.scale_columns}; expand this weight to dense"
    )


def _pack(cpu: Extension, packed: Packed, kind: Kind, data: Tensor) -> None:
    rows, columns = packed.shape
    values, positions = packed.values.detach().cpu().contiguous(), packed.positions.cpu().contiguous()
    scales = torch.empty(0, 0) if packed.scales is None else packed.scales.detach().cpu().contiguous()
    cpu.pack(
        kind, values.data_ptr(), positions.data_ptr(), scales.data_ptr(), scales.shape[1],
        data.data_ptr(), rows, columns, torch.get_num_threads(),
    )  # fmt: skip


def _empty_packed(kind: Kind, rows: int, columns: int) -> Packed:
    dtype = torch.bfloat16 if kind is Kind.SPARSE_BF16 else torch.int8
    values = torch.empty(rows, columns // 2, dtype=dtype)
    positions = torch.empty(rows, -(-columns // 8), dtype=torch.uint8)
    if kind is Kind.SPARSE_BF16:
        return Packed(values, positions)
    scale_columns = BLOCK_COLUMNS if kind is Kind.SPARSE_INT8_BLOCK_SCALES else 0
    scales = torch.empty(rows, scale_count(columns, scale_columns))
    return Packed(values, positions, scales, scale_columns)


def _unpack(cpu: Extension, weight: CpuWeight, to: Packed) -> None:
    scales = torch.empty(0, 0) if to.scales is None else to.scales
    data = weight.data.contiguous()
    cpu.unpack(
        weight.kind, data.data_ptr(), to.values.data_ptr(), to.positions.data_ptr(), scales.data_ptr(),
        scales.shape[1], weight.rows, weight.columns, torch.get_num_threads(),
    )  # fmt: skip
