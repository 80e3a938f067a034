"""Adam over the kept weights of one linear, in two sizes. A size is chosen by the memory that there is.

`Full` is the fast one: 16 bytes for each kept weight, a float32 master, two float32 moments, and its place in the
weight, int32. `Lean` takes 4.3: the moments in 8 bits (`eight_bit`), places as a packed weight has them, a nibble for
two, and of the master the half that the weight does not have. A bfloat16 weight is the upper half of the bits of its
float32 master, rounded; the lower half is beside it as an int16:

    bits of the master = (bits of the weight << 16) + residue     -32768 <= residue < 32768

so master and weight are exact at 2 + 2 bytes (ties round away from zero). Where the weight is no such half (float16,
or values rounded to int8 in the model), the master is float32, and 6.3 bytes it is.

Only kept places are ever written, so 2:4 cannot break. A weight that is not 2:4, of a linear that stays dense, is
trained in all places.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor
from torch.optim.adam import adam

from twofour.prune.format import pattern
from twofour.prune.format.packed import Packed, pack
from twofour.prune.format.pattern import GROUP, KEEP
from twofour.prune.recovery import eight_bit

BETAS = (0.9, 0.95)
EPSILON = 1e-8
CHUNK = {"cpu": 1 << 20, "cuda": 1 << 25}  # weights that `Lean` works on at a time: what a cache holds; few launches

Rounding = Callable[[Tensor], Tensor]  # a weight, [out, in] -> its values as they will be stored


class Optimiser(Protocol):
    """Adam over the kept weights of one linear, whose weight is handed in: [out, in], in the model's dtype."""

    def step(self, weight: Tensor, gradient: Tensor, scale: float, rate: float) -> None:
        """Move the kept weights against a gradient, [out, in], that is `scale` times too large."""
        ...

    def copy(self, weight: Tensor) -> Tensor:
        """Return the kept weights as they are now."""
        ...

    def put(self, weight: Tensor, kept: Tensor) -> None:
        """Set the kept weights."""
        ...

    def state(self, weight: Tensor) -> dict[str, Tensor]:
        """Return what the next step depends on, by name. Not a copy, where that can be."""
        ...

    def restore(self, weight: Tensor, state: Mapping[str, Tensor]) -> None:
        """Go back to a state."""
        ...


class Full:
    """Adam in float32. Kept weights are those that are not zero."""

    def __init__(self, weight: Tensor, stored_dtype: torch.dtype, rounding: Rounding | None) -> None:
        self._places = None if pattern.first_violation(weight) else weight.flatten().nonzero().flatten().int()
        self._stored_dtype, self._rounding = stored_dtype, rounding
        self._master = self.copy(weight).float()
        self._moments = [torch.zeros_like(self._master) for _ in BETAS]
        self._steps = torch.zeros((), device=weight.device)

    def step(self, weight: Tensor, gradient: Tensor, scale: float, rate: float) -> None:
        slope = self.copy(gradient).float()
        first, second = self._moments
        adam(
            [self._master],
            [slope if scale == 1 else slope.div_(scale)],
            [first],
            [second],
            [],
            [self._steps],
            fused=True,
            amsgrad=False,
            beta1=BETAS[0],
            beta2=BETAS[1],
            lr=rate,
            weight_decay=0.0,
            eps=EPSILON,
            maximize=False,
        )
        self.put(weight, self._master.to(self._stored_dtype))

    def copy(self, weight: Tensor) -> Tensor:
        """`index_select`, for `Tensor.take` is twice as slow and refuses int32 places."""
        return weight.flatten().clone() if self._places is None else weight.flatten().index_select(0, self._places)

    def put(self, weight: Tensor, kept: Tensor) -> None:
        if self._places is None:
            weight.view(-1).copy_(kept)
        else:
            places = self._places if weight.device.type == "cpu" else self._places.long()  # there it takes int32
            weight.view(-1).scatter_(0, places, kept.to(weight))
        _round(weight, self._rounding)

    def state(self, weight: Tensor) -> dict[str, Tensor]:
        first, second = self._moments
        return {"master": self._master, "first": first, "second": second, "steps": self._steps}

    def restore(self, weight: Tensor, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state(weight).items():
            tensor.copy_(state[name])
        self.put(weight, self._master.to(self._stored_dtype))


class Lean:
    """Adam in little memory. Kept weights are two of each four, be they zero or not."""

    def __init__(self, weight: Tensor, stored_dtype: torch.dtype, rounding: Rounding | None) -> None:
        self._positions = None if pattern.first_violation(weight) else pack(weight).positions
        self._stored_dtype, self._rounding = stored_dtype, rounding
        rows, columns = weight.shape
        columns = columns if self._positions is None else columns * KEEP // GROUP
        self._moments = [eight_bit.zeros(rows, columns, dtype, weight.device) for dtype in (torch.int8, torch.uint8)]
        self._split = is_split(weight.dtype, stored_dtype, rounding)
        self._low = torch.zeros(rows, columns, dtype=torch.int16, device=weight.device)
        if not self._split:
            self._low = self.copy(weight).float()
        self._steps = torch.zeros(())

    def step(self, weight: Tensor, gradient: Tensor, scale: float, rate: float) -> None:
        self._steps += 1
        for rows in self._chunks(weight):
            slope = self._pick(gradient, rows).float().div_(scale)
            master = self._master(weight, rows).sub_(self._direction(slope, rows).mul_(rate))
            self._set_master(weight, rows, master)
        _round(weight, self._rounding)

    def _direction(self, slope: Tensor, rows: slice) -> Tensor:  # [rows, kept] -> the same, changed in place
        """Count a gradient in, and return Adam's step at a rate of 1."""
        first, root = (moment.rows(rows) for moment in self._moments)
        mean = eight_bit.read(first).lerp_(slope, 1 - BETAS[0])
        eight_bit.write(first, mean)
        squares = eight_bit.read(root).square_().lerp_(slope.square_(), 1 - BETAS[1])
        spread = squares.sqrt_()
        eight_bit.write(root, spread)
        steps = float(self._steps)
        spread = spread.div_((1 - BETAS[1] ** steps) ** 0.5).add_(EPSILON)
        return mean.div_(1 - BETAS[0] ** steps).div_(spread)

    def _master(self, weight: Tensor, rows: slice) -> Tensor:  # float32 [rows, kept]
        if self._split:
            return joined(self._pick(weight, rows), self._low[rows])
        return self._low[rows].clone()

    def _set_master(self, weight: Tensor, rows: slice, master: Tensor) -> None:
        if self._split:
            kept, low = halves(master)
        else:
            kept, low = master.to(self._stored_dtype), master
        self._low[rows] = low
        self._place(weight, rows, kept)

    def copy(self, weight: Tensor) -> Tensor:
        return torch.cat([self._pick(weight, rows) for rows in self._chunks(weight)])

    def put(self, weight: Tensor, kept: Tensor) -> None:
        for rows in self._chunks(weight):
            self._place(weight, rows, kept[rows])
        _round(weight, self._rounding)

    def state(self, weight: Tensor) -> dict[str, Tensor]:
        names = ("first", "first_scales", "root", "root_scales")
        moments = dict(zip(names, (*self._moments[0], *self._moments[1]), strict=True))
        high = {"weight": self.copy(weight)} if self._split else {}
        return {"low": self._low, "steps": self._steps} | moments | high

    def restore(self, weight: Tensor, state: Mapping[str, Tensor]) -> None:
        for name, tensor in self.state(weight).items():
            tensor.copy_(state[name])
        self.put(weight, state["weight"] if self._split else self._low.to(self._stored_dtype))

    def _chunks(self, weight: Tensor) -> Iterator[slice]:
        rows = max(1, CHUNK[weight.device.type] // weight.shape[1])
        return (slice(first, first + rows) for first in range(0, len(weight), rows))

    def _pick(self, matrix: Tensor, rows: slice) -> Tensor:  # [out, in] -> [rows, kept]
        slots = self._slots(matrix, rows)
        return matrix[rows] if slots is None else matrix[rows].unflatten(1, (-1, GROUP)).gather(-1, slots).flatten(1)

    def _place(self, weight: Tensor, rows: slice, kept: Tensor) -> None:
        slots = self._slots(weight, rows)
        if slots is None:
            weight[rows] = kept.to(weight)
        else:
            weight[rows].unflatten(1, (-1, GROUP)).scatter_(-1, slots, kept.to(weight).unflatten(1, (-1, KEEP)))

    def _slots(self, matrix: Tensor, rows: slice) -> Tensor | None:  # int64 [rows, in / 4, 2]; None: all
        if self._positions is None:
            return None
        kept = self._low[rows]
        return Packed(kept, self._positions[rows]).slots()


def is_split(dtype: torch.dtype, stored_dtype: torch.dtype, rounding: Rounding | None) -> bool:
    """Whether a weight is the upper half of its float32 master."""
    return dtype == stored_dtype == torch.bfloat16 and rounding is None


def halves(master: Tensor) -> tuple[Tensor, Tensor]:  # float32 -> bfloat16, int16
    """Split float32 into the nearest bfloat16, ties away from zero, and the residue of its bits."""
    bits = master.contiguous().view(torch.int32)
    high = bits + 0x8000 >> 16
    return high.to(torch.int16).view(torch.bfloat16), (bits - (high << 16)).to(torch.int16)


def joined(high: Tensor, low: Tensor) -> Tensor:  # bfloat16, int16 -> float32
    """Join what `halves` has split."""
    bits = high.contiguous().view(torch.int16).int()
    return (bits << 16).add_(low.int()).view(torch.float32)


def _round(weight: Tensor, rounding: Rounding | None) -> None:
    if rounding:
        weight.copy_(rounding(weight))
