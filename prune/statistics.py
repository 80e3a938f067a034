"""What calibration accumulates about the inputs of a linear, in float32, one statistic for every distinct input.

`Norms` keeps the sum of squares of every input (Wanda), `Hessian` the whole sum of x x^T (SparseGPT). Neither divides
by the number of tokens: Wanda compares inside a group and SparseGPT's damping is relative, so the factor cancels.
Pad positions never enter. q, k and v see one tensor, gate and up another: `Observer` notices and counts it once.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from twofour.prune.errors import ModelError, NonFiniteError

STRIPES = 8  # a Hessian is summed in its upper block triangle: 9/16 of the multiplications at 8 stripes


class Statistic(Protocol):
    """A sum over the tokens that a linear has seen."""

    tokens: int

    def add(self, inputs: Tensor) -> None:  # float32 [tokens, in]
        """Count these inputs."""
        ...

    @property
    def squares(self) -> Tensor:  # float32 [in]
        """The sum of squares of every input."""
        ...

    def energy(self, weight: Tensor) -> float:  # float32 [out, in]
        """The sum over tokens and outputs of (W x)^2, as far as this statistic knows it."""
        ...


class Norms:
    """The sum of squares of every input; `energy` takes the inputs for uncorrelated."""

    def __init__(self, width: int, device: torch.device | None = None) -> None:
        self.tokens = 0
        self._squares = torch.zeros(width, device=device)

    def add(self, inputs: Tensor) -> None:
        self.tokens += inputs.shape[0]
        self._squares += inputs.square().sum(0)

    @property
    def squares(self) -> Tensor:
        return self._squares

    def energy(self, weight: Tensor) -> float:
        return float((weight.square() @ self._squares).sum())


class Hessian:
    """The sum of x x^T, [in, in]."""

    def __init__(self, width: int, device: torch.device | None = None) -> None:
        self.tokens = 0
        self._upper = torch.zeros(width, width, device=device)  # right only on and above the block diagonal

    def add(self, inputs: Tensor) -> None:
        self.tokens += inputs.shape[0]
        width = inputs.shape[1]
        step = -(-width // STRIPES)
        for start in range(0, width, step):
            rows = inputs[:, start : start + step]
            self._upper[start : start + step, start:].addmm_(rows.T, inputs[:, start:])

    @property
    def squares(self) -> Tensor:
        return self._upper.diagonal()

    @property
    def matrix(self) -> Tensor:
        """The whole symmetric matrix itself, not a copy: the next `add` changes it."""
        width = len(self._upper)
        step = -(-width // STRIPES)
        for start in range(0, width, step):
            stop = start + step
            own = self._upper[start:stop, start:stop]
            own.copy_(own.triu() + own.triu(1).T)
            self._upper[stop:, start:stop] = self._upper[start:stop, stop:].T
        return self._upper

    def energy(self, weight: Tensor) -> float:
        return float(((weight @ self.matrix) * weight).sum())


def layer_loss(weight: Tensor, pruned: Tensor, statistic: Statistic | None) -> float:
    """Return the relative squared error of the outputs, or of the weights where there is no statistic; 0/0 is 0."""
    lost, whole = (
        float(w.square().sum()) if statistic is None else statistic.energy(w) for w in (weight - pruned, weight)
    )
    return max(lost, 0.0) / whole if whole > 0 else 0.0


@dataclass(frozen=True)
class Positions:
    """Which tokens one forward pass holds: samples from `first_sample` on, and which positions are not padding."""

    first_sample: int
    samples: int
    length: int
    mask: Tensor | None = None  # bool [samples, length]; None: no padding

    def rows(self, inputs: Tensor, name: str) -> Tensor:  # [..., in] -> [tokens, in]
        """Flatten the inputs of a linear to the rows of real tokens."""
        flat = inputs.flatten(0, -2)
        if self.mask is None:
            return flat
        if flat.shape[0] != self.mask.numel():
            raise ModelError(
                f"{name} sees {flat.shape[0]} rows of a batch of {self.mask.numel()} positions, so padding cannot be "
                "told apart; calibrate on sequences of equal length"
            )
        return flat[self.mask.flatten()]

    def locate(self, row: int) -> str:
        """Say where in the text a row of `rows` stands."""
        index = row if self.mask is None else int(self.mask.flatten().nonzero()[row])
        if index >= self.samples * self.length:
            return f"row {row}"
        return f"sample {self.first_sample + index // self.length}, position {index % self.length}"


class Observer:
    """Gathers a statistic for every linear of one block; linears that are given one tensor share one statistic."""

    def __init__(self, new: Callable[[int, torch.device], Statistic]) -> None:
        self._new = new
        self._leader_of: dict[str, str] = {}
        self._statistics: dict[str, Statistic] = {}
        self._positions: Positions | None = None
        self._seen: dict[tuple[object, ...], tuple[str, Tensor]] = {}

    def start(self, positions: Positions) -> None:
        """Begin a forward pass over these tokens."""
        self._positions, self._seen = positions, {}

    def see(self, name: str, inputs: Tensor) -> None:  # [..., in]
        """Count what a linear is given. Raises NonFiniteError, naming the linear and the place in the text."""
        # The tensor itself is kept until the next pass, so that its address cannot come back as another's.
        leader, _ = self._seen.setdefault(_identity(inputs), (name, inputs))
        if self._leader_of.setdefault(name, leader) != leader:
            raise ModelError(f"{name} shares its input with {leader} in some passes only; prune a simpler model")
        if leader == name:
            self._count(name, inputs)

    def groups(self) -> list[tuple[list[str], Statistic]]:
        """List the linears that share an input, with its statistic, in the order of first sight."""
        return [
            ([name for name, leader in self._leader_of.items() if leader == first], statistic)
            for first, statistic in self._statistics.items()
        ]

    def _count(self, name: str, inputs: Tensor) -> None:
        assert self._positions is not None, "start() comes first"
        rows = self._positions.rows(inputs, name).float()
        if name not in self._statistics:
            self._statistics[name] = self._new(rows.shape[1], rows.device)
        self._statistics[name].add(rows)
        if not bool(torch.isfinite(self._statistics[name].squares).all()):
            self._refuse(name, rows, self._positions)

    def _refuse(self, name: str, rows: Tensor, positions: Positions) -> None:
        bad = (~torch.isfinite(rows)).any(1).nonzero()
        if len(bad):
            fact = f"the input of {name} is NaN or infinite at {positions.locate(int(bad[0]))}"
        else:
            fact = f"the inputs of {name} are too large for float32 sums of squares"
        raise NonFiniteError(f"{fact}; check the model's weights and dtype, or leave that text out")


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """Equal for two tensors alive at once only if they hold the same numbers: a change in place counts up."""
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version
