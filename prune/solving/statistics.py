"""What calibration accumulates about the inputs of a linear, in float32, one statistic for every distinct input.

`Norms` keeps the sum of squares of every input (Wanda), `Hessian` the whole sum of x x^T (SparseGPT). Neither divides
by the number of tokens: Wanda compares inside a group and SparseGPT's damping is relative, so the factor cancels.
Pad positions never enter. q, k and v see one tensor, gate and up another: `Observer` notices and counts it once.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from twofour.prune.errors import ModelError, NonFiniteError

STRIPES = 8  # a Hessian is summed in its upper block triangle: 9/16 of the multiplications at 8 stripes


class Statistic(Protocol):
    """A sum over the tokens that a linear has seen."""

    tokens: int
    sums: Tensor  # what is added up

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
        self.sums = torch.zeros(width, device=device)

    def add(self, inputs: Tensor) -> None:
        self.tokens += inputs.shape[0]
        self.sums += inputs.square().sum(0)

    @property
    def squares(self) -> Tensor:
        return self.sums

    def energy(self, weight: Tensor) -> float:
        return float((weight.square() @ self.sums).sum())


class Hessian:
    """The sum of x x^T, [in, in]."""

    def __init__(self, width: int, device: torch.device | None = None) -> None:
        self.tokens = 0
        self.sums = torch.zeros(width, width, device=device)  # right only on and above the block diagonal

    def add(self, inputs: Tensor) -> None:
        self.tokens += inputs.shape[0]
        width = inputs.shape[1]
        step = -(-width // STRIPES)
        for start in range(0, width, step):
            rows = inputs[:, start : start + step]
            self.sums[start : start + step, start:].addmm_(rows.T, inputs[:, start:])

    @property
    def squares(self) -> Tensor:
        return self.sums.diagonal()

    @property
    def matrix(self) -> Tensor:
        """The whole symmetric matrix itself, not a copy: the next `add` changes it."""
        width = len(self.sums)
        step = -(-width // STRIPES)
        for start in range(0, width, step):
            stop = start + step
            own = self.sums[start:stop, start:stop]
            own.copy_(own.triu() + own.triu(1).T)
            self.sums[stop:, start:stop] = self.sums[start:stop, stop:].T
        return self.sums

    def energy(self, weight: Tensor) -> float:
        return float(((weight @ self.matrix) * weight).sum())


def layer_loss(weight: Tensor, pruned: Tensor, statistic: Statistic | None) -> float:
    """Return the relative squared error of the outputs, or of the weights where there is no statistic; 0/0 is 0."""
    lost, whole = (
        float(w.square().sum()) if statistic is None else statistic.energy(w) for w in (weight - pruned, weight)
    )
    return max(lost, 0.0) / whole if whole > 0 else 0.0


def shrink(experts: Sequence[Statistic]) -> None:
    """Draw the statistics of the experts of a layer towards their common mean, in place: k more tokens of it for each.

    With k = the number of inputs and a = k / (k + tokens), H_e / tokens becomes (1 - a) H_e / tokens + a mean: an
    expert with many tokens keeps its own, one with none has the mean. Every token goes to equally many experts, so the
    mean is that of the whole layer. (The covariances of classes, drawn towards the pooled one: Friedman, Regularized
    Discriminant Analysis, 1989.)
    """
    tokens = sum(expert.tokens for expert in experts)
    mean = torch.zeros_like(experts[0].sums)
    for expert in experts:
        mean += expert.sums / tokens
    for expert in experts:
        expert.sums.add_(mean, alpha=mean.shape[0])


@dataclass(frozen=True)
class Positions:
    """Which tokens one forward pass holds: samples from `first_sample` on, and which positions are not padding."""

    first_sample: int
    samples: int
    length: int
    mask: Tensor | None = None  # bool [samples, length]; None: no padding

    def rows(self, inputs: Tensor, name: str, given: Tensor | None = None) -> Tensor:  # [..., in] -> [tokens, in]
        """Flatten the inputs of a linear to the rows of real tokens. `given`: int64, the positions; None: all."""
        flat = inputs.flatten(0, -2)
        if self.mask is None:
            return flat
        real = self.mask.flatten() if given is None else self.mask.flatten()[given]
        if flat.shape[0] != real.shape[0]:
            raise ModelError(
                f"{name} sees {flat.shape[0]} rows of a batch of {real.shape[0]} positions, so padding cannot be "
                "told apart; calibrate on sequences of equal length"
            )
        return flat[real]

    def locate(self, row: int, given: Tensor | None = None) -> str:
        """Say where in the text a row that `rows` returned stands."""
        positions = torch.arange(self.samples * self.length) if given is None else given.cpu()
        if self.mask is not None:
            positions = positions[self.mask.flatten().cpu()[positions]]
        if row >= len(positions):
            return f"row {row}"
        index = int(positions[row])
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

    def see(self, name: str, inputs: Tensor, given: Tensor | None = None) -> None:  # [..., in]
        """Count what a linear is given, at these positions (None: all of the pass).

        Raises NonFiniteError, naming the linear and the place in the text.
        """
        # The tensor itself is kept until the next pass, so that its address cannot come back as another's.
        leader, _ = self._seen.setdefault(_identity(inputs), (name, inputs))
        if self._leader_of.setdefault(name, leader) != leader:
            raise ModelError(f"{name} shares its input with {leader} in some passes only; prune a simpler model")
        if leader == name:
            self._count(name, inputs, given)

    def shrink(self, peers: Sequence[str]) -> None:
        """Draw the statistics of linears with the same place in their experts towards each other."""
        own = [self._statistics[name] for name in peers if name in self._statistics]
        if own:  # else they share the statistic of other peers
            shrink(own)

    def groups(self) -> list[tuple[list[str], Statistic]]:
        """List the linears that share an input, with its statistic, in the order of first sight."""
        return [
            ([name for name, leader in self._leader_of.items() if leader == first], statistic)
            for first, statistic in self._statistics.items()
        ]

    def _count(self, name: str, inputs: Tensor, given: Tensor | None) -> None:
        assert self._positions is not None, "start() comes first"
        rows = self._positions.rows(inputs, name, given).float()
        if name not in self._statistics:
            self._statistics[name] = self._new(rows.shape[1], rows.device)
        self._statistics[name].add(rows)
        if not bool(torch.isfinite(self._statistics[name].squares).all()):
            self._refuse(name, rows, self._positions, given)

    def _refuse(self, name: str, rows: Tensor, positions: Positions, given: Tensor | None) -> None:
        bad = (~torch.isfinite(rows)).any(1).nonzero()
        if len(bad):
            fact = f"the input of {name} is NaN or infinite at {positions.locate(int(bad[0]), given)}"
        else:
            place = positions.locate(int(rows.abs().amax(1).argmax()), given)
            fact = f"the inputs of {name} are too large for float32 sums of squares, the largest at {place}"
        raise NonFiniteError(f"{fact}; check the model's weights and dtype, or leave that text out")


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """Equal for two tensors alive at once only if they hold the same numbers: a change in place counts up."""
    if tensor.numel() == 0:  # which has no address
        return (id(tensor),)
    return tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor._version
