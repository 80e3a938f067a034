"""The kept weights of pruned linears, trained while what is zero stays zero.

Every linear computes with weights rounded as they will be stored; float32 masters of the kept ones, and Adam's two
moments, live beside them (12 bytes a kept weight). Only kept positions are ever written, so 2:4 cannot break. The rate
is relative: a step moves a weight by about `rate` times the root mean square of the kept weights of its linear, so one
rate fits all linears of all models.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from twofour.prune.errors import NonFiniteError
from twofour.prune.progress import Progress, Step, silent

BETAS = (0.9, 0.95)
PATIENCE = 2  # passes without a better validation loss, after which training ends
HELD_OUT = 8  # one part in so many validates

Loss = Callable[[int], Tensor]  # the number of a part of the text -> its loss


@dataclass(frozen=True)
class Outcome:
    """The loss on held-out text before training and of what was kept, and how many passes it took."""

    before: float
    after: float
    passes: int


class KeptWeights:
    """The non-zero weights of some linears and their optimiser. `stored`: the dtype that they are rounded to."""

    def __init__(self, linears: Iterable[nn.Linear], stored: torch.dtype, rate: float) -> None:
        self._weights = [linear.weight for linear in linears]
        self._masks = [weight != 0 for weight in self._weights]
        self._masters = [nn.Parameter(values.float()) for values in self.copy()]
        self._stored = stored
        self._rates = [rate * _root_mean_square(master.detach()) for master in self._masters]
        groups = [{"params": [master], "lr": own} for master, own in zip(self._masters, self._rates, strict=True)]
        self._adam = torch.optim.Adam(groups, betas=BETAS, fused=True)

    @contextmanager
    def training(self) -> Iterator[None]:
        """Let losses reach the weights."""
        try:
            for weight in self._weights:
                weight.requires_grad_(True)
            with torch.enable_grad():
                yield
        finally:
            for weight in self._weights:
                weight.requires_grad_(False)

    @torch.no_grad()
    def step(self, share: float) -> None:
        """Move the weights against the gradient of the last loss, at this share of the full rate."""
        for weight, mask, master in zip(self._weights, self._masks, self._masters, strict=True):
            master.grad = None if weight.grad is None else weight.grad[mask].float()
            weight.grad = None
        for group, rate in zip(self._adam.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        self._adam.step()
        self.put([master.to(self._stored) for master in self._masters])

    def copy(self) -> list[Tensor]:
        """Return the kept weights as they are now."""
        return [weight.detach()[mask] for weight, mask in zip(self._weights, self._masks, strict=True)]

    @torch.no_grad()
    def put(self, kept: Sequence[Tensor]) -> None:
        """Set the kept weights."""
        for weight, mask, values in zip(self._weights, self._masks, kept, strict=True):
            weight.masked_scatter_(mask, values.to(weight.dtype))


def split(parts: int) -> tuple[range, range]:
    """Split the parts of a text in those that train and those, at the end, that validate. Needs at least two."""
    held_out = max(1, parts // HELD_OUT)
    return range(parts - held_out), range(parts - held_out, parts)


def train(
    kept: KeptWeights, loss: Loss, parts: int, passes: int, seed: int, stage: str = "", progress: Progress = silent
) -> Outcome:
    """Train on most parts of a text, validate on the rest after every pass, and keep the best, the start included.

    The rate falls with half a cosine. Raises NonFiniteError if the start has no finite loss.
    """
    training, held_out = split(parts)
    order = [int(part) for part in _orders(len(training), passes, seed)]
    before = best = _mean(loss, held_out)
    if not math.isfinite(before):
        raise NonFiniteError("the pruned model has no finite loss on held-out text; check the model's weights")
    values, since, started = kept.copy(), 0, time.perf_counter()
    for done, part in enumerate(order, start=1):
        with kept.training():
            loss(part).backward()
        kept.step(half_cosine((done - 1) / len(order)))
        if done % len(training) == 0:
            now = _mean(loss, held_out)
            values, best, since = (kept.copy(), now, 0) if now < best else (values, best, since + 1)
        progress(Step(stage, done, len(order), time.perf_counter() - started, f"held-out loss {best:.4f}"))
        if since == PATIENCE:
            break
    kept.put(values)
    return Outcome(before, best, -(-done // len(training)))


def half_cosine(share: float) -> float:
    """Return the rate after this share of the steps: 1 at the start, 0 at the end."""
    return (1 + math.cos(math.pi * share)) / 2


def _orders(parts: int, passes: int, seed: int) -> Tensor:  # int64 [passes * parts]
    """A new order for every pass."""
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([torch.randperm(parts, generator=generator) for _ in range(passes)])


@torch.no_grad()
def _mean(loss: Loss, parts: range) -> float:
    return sum(float(loss(part)) for part in parts) / len(parts)


def _root_mean_square(values: Tensor) -> float:
    return float(values.square().sum()) ** 0.5 / max(1, values.numel()) ** 0.5
