"""How much each linear loses by being 2:4, measured end to end against the dense model on held-out text.

On the straight line from the dense weights w to the pruned p, the divergence is 0 at first, flat, and grows with the
square of the way. Its slope is a sum over the linears, so the slope a fifth of the way along says what each adds:

    loss = <gradient of KL(dense || w + t (p - w)),  p - w> / (2 t)        at t = 0.2

That is the second-order part of the divergence (by its Hessian, Fisher's information: LeCun et al., Optimal brain
damage), what linears lose only together shared between them. It takes one forward and backward pass through the text,
however many linears there are; to prune each by itself, or to make it dense again by itself, takes a run through half
of the model for each. On the demo model mixtures chosen by it diverge 5 to 15 % less than those by the mean slope of
the whole way, which adds up to the divergence of the pruned model but says less of mixtures near the dense one.

A gradient is used and freed as soon as it is there. Rounding to int8 costs little, a hundredth of it. It is measured
once, for all linears, and shared out by weights.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from twofour.prune.errors import NonFiniteError
from twofour.prune.format.schemes import TWO_OF_FOUR, Scheme
from twofour.prune.progress import Counter, Progress, counter
from twofour.prune.recovery.training import Loss

PLACE = 0.2  # on the way from dense, 0, to pruned, 1
FLOAT16_SCALE = 2.0**12  # of the divergence: gradients of single weights are too small for float16

Weight = Callable[[str], Tensor]  # the name of a linear -> a weight of it, [out, in]
Put = Callable[[Mapping[str, Scheme]], None]  # gives the linears of the model in memory these schemes


@dataclass(frozen=True)
class Text:
    """The held-out text: `loss` is the divergence from the dense model on one of its `parts`."""

    loss: Loss
    parts: int


@dataclass(frozen=True)
class Sensitivity:
    """pruned: what each linear loses by being 2:4. rounded: what all linears lose by being int8, in nats a token."""

    pruned: Mapping[str, float]
    rounded: float

    def losses(self, weights: Mapping[str, int], scheme: Scheme) -> dict[str, float]:
        """Return what each linear loses in a scheme. weights: how many each of them has."""
        rounded = self.rounded / sum(weights.values()) if scheme.endswith("int8") else 0.0
        return {
            name: rounded * weights[name] + (self.pruned[name] if scheme in TWO_OF_FOUR else 0.0) for name in weights
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        return asdict(self)


def measure(
    linears: Mapping[str, nn.Linear], text: Text, dense: Weight, pruned: Weight, put: Put, progress: Progress
) -> Sensitivity:
    """Measure what linears lose. Their weights are others afterwards."""
    step = counter("measuring sensitivity", 2 * text.parts, progress)
    losses = on_the_way(linears, text, dense, pruned, step)
    put(dict.fromkeys(linears, "dense-int8"))
    return Sensitivity(losses, divergence(text, step))


@torch.no_grad()
def divergence(text: Text, step: Counter = lambda detail="": None) -> float:
    """Return the divergence of the model as it is in memory, the mean over the text."""
    found = list[float]()
    for part in range(text.parts):
        found.append(float(text.loss(part)))
        step()
    return sum(found) / text.parts


def on_the_way(
    linears: Mapping[str, nn.Linear], text: Text, dense: Weight, pruned: Weight, step: Counter
) -> dict[str, float]:
    """Return what each linear adds to the divergence on the way from its dense weight to the pruned one."""
    losses = dict.fromkeys(linears, 0.0)
    scale = FLOAT16_SCALE if next(iter(linears.values())).weight.dtype == torch.float16 else 1.0
    _put_between(linears, dense, pruned)
    with _adding(linears, dense, losses, 1 / (2 * PLACE**2 * text.parts * scale)):
        for part in range(text.parts):
            _backward(text.loss(part), part, scale)
            step()
    return losses


@torch.no_grad()
def _put_between(linears: Mapping[str, nn.Linear], dense: Weight, pruned: Weight) -> None:
    for name, linear in linears.items():
        linear.weight.copy_(torch.lerp(dense(name).float(), pruned(name).float(), PLACE))


@contextmanager
def _adding(linears: Mapping[str, nn.Linear], dense: Weight, losses: dict[str, float], factor: float) -> Iterator[None]:
    """Let every backward pass add to the losses: the gradient along the way from the dense weight to this one."""
    handles = list[RemovableHandle]()
    try:
        for name, linear in linears.items():
            linear.weight.requires_grad_(True)
            add = partial(_add, name, dense, losses, factor)
            handles.append(linear.weight.register_post_accumulate_grad_hook(add))
        with torch.enable_grad():
            yield
    finally:
        for handle in handles:
            handle.remove()
        for linear in linears.values():
            linear.weight.requires_grad_(False)


@torch.no_grad()
def _add(name: str, dense: Weight, losses: dict[str, float], factor: float, weight: Tensor) -> None:
    assert weight.grad is not None, "called when there is one"
    way = weight.float() - dense(name).to(weight.device).float()
    losses[name] += factor * float((way * weight.grad.float()).sum())
    weight.grad = None


def _backward(loss: Tensor, part: int, scale: float) -> None:
    if not bool(torch.isfinite(loss)):
        raise NonFiniteError(
            f"no finite divergence on part {part} of the held-out text; check the model's weights and dtype"
        )
    (loss * scale).backward()
