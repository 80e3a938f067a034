"""The kept weights of pruned linears, trained while what is zero stays zero.

Every linear computes with weights rounded as they will be stored. Beside them live their masters, places and Adam's
moments (`optimiser`). A weight moves as soon as its gradient is there, on the way back through the model, and the
gradient is dropped: at no time is there more than one. The rate is relative: a step moves a weight by about `rate`
times the root mean square of the kept weights of its linear, so one rate fits all linears of all models.

In float16 most gradients would be too small to hold. So where linears compute in float16, the loss is multiplied by a
power of two, and gradients are divided by it again (Micikevicius et al., arXiv 1710.03740). Where one becomes too large
for float16, its weight does not move; the factor is halved, and the step is made again for the weights that are left.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn

from twofour.prune.recovery.optimiser import Full, Lean, Optimiser, Rounding

FIRST_SCALE = 2.0**16
GROWTH_STEPS = 2000  # without a gradient that is too large, after which the scale is doubled

Roundings = Sequence[Rounding | None]  # of each linear


class KeptWeights:
    """The kept weights of some linears and their optimiser.

    stored_dtype: what they are rounded to. rounding: what a whole weight is rounded by after that, if anything: one for
    all linears, or one for each. lean: whether to take little memory, see `optimiser`.
    """

    def __init__(
        self,
        linears: Iterable[nn.Linear],
        stored_dtype: torch.dtype,
        rate: float,
        rounding: Rounding | Roundings | None = None,
        lean: bool = False,
    ) -> None:
        linears = list(linears)
        self._weights = [linear.weight for linear in linears]
        roundings = rounding if isinstance(rounding, Sequence) else [rounding] * len(self._weights)
        self._optimisers: list[Optimiser] = [
            (Lean if lean else Full)(weight.detach(), stored_dtype, own)
            for weight, own in zip(self._weights, roundings, strict=True)
        ]
        self._rates = [rate * _root_mean_square(values) for values in self.copy()]
        self._is_scaled = self._weights[0].dtype == torch.float16
        self._scale = torch.tensor(FIRST_SCALE if self._is_scaled else 1.0)
        self._good_steps = torch.tensor(0.0)
        self._share, self._moved, self._overflowed = 0.0, set[int](), False

    @contextmanager
    def training(self) -> Iterator[None]:
        """Let losses reach the weights, and gradients move them."""
        handles = []
        try:
            for number, weight in enumerate(self._weights):
                weight.requires_grad_(True)
                handles.append(weight.register_post_accumulate_grad_hook(partial(self._move, number)))
            with torch.enable_grad():
                yield
        finally:
            for handle in handles:
                handle.remove()
            for weight in self._weights:
                weight.requires_grad_(False)
                weight.grad = None

    def step(self, loss: Tensor, share: float) -> bool:
        """Move the weights against the gradient of a loss, at this share of the full rate. Call it in `training`.

        False: gradients of some weights were not finite, and these have not moved. Call it again for them, with the
        same loss computed anew: it will be scaled by less.
        """
        self._share, self._overflowed = share, False
        (loss * float(self._scale) if self._is_scaled else loss).backward()
        if self._overflowed:
            self._scale /= 2
            self._good_steps.zero_()
            return False
        self._moved.clear()
        self._good_steps += 1
        if self._is_scaled and float(self._good_steps) >= GROWTH_STEPS:
            self._scale *= 2
            self._good_steps.zero_()
        return True

    @torch.no_grad()
    def _move(self, number: int, weight: Tensor) -> None:
        gradient, weight.grad = weight.grad, None
        assert gradient is not None, "the hook runs when there is one"
        if number in self._moved:
            return
        if self._is_scaled and not bool(torch.isfinite(gradient).all()):
            self._overflowed = True
            return
        # `data` counts no change: experts are parts of one tensor, and the others are still needed on the way back.
        self._optimisers[number].step(weight.data, gradient, float(self._scale), self._rates[number] * self._share)
        self._moved.add(number)

    def state(self) -> dict[str, Tensor]:
        """Return what the next step depends on, by name, the scale of the loss included. Not a copy."""
        state = {
            f"{name}.{n}": tensor
            for n, (weight, optimiser) in enumerate(zip(self._weights, self._optimisers, strict=True))
            for name, tensor in optimiser.state(weight.detach()).items()
        }
        return state | ({"scale": self._scale, "good_steps": self._good_steps} if self._is_scaled else {})

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a state."""
        for n, (weight, optimiser) in enumerate(zip(self._weights, self._optimisers, strict=True)):
            own = {name.removesuffix(f".{n}"): tensor for name, tensor in state.items() if name.endswith(f".{n}")}
            optimiser.restore(weight.detach(), own)
        if self._is_scaled:
            self._scale.copy_(state["scale"])
            self._good_steps.copy_(state["good_steps"])

    def copy(self) -> Iterator[Tensor]:
        """Give a copy of the kept weights of each linear as they are now, one after the other."""
        for weight, optimiser in zip(self._weights, self._optimisers, strict=True):
            yield optimiser.copy(weight.detach())

    @torch.no_grad()
    def put(self, kept: Iterable[Tensor]) -> None:
        """Set the kept weights."""
        for weight, optimiser, values in zip(self._weights, self._optimisers, kept, strict=True):
            optimiser.put(weight.detach(), values)


def _root_mean_square(values: Tensor) -> float:
    values = values.float()
    return float(values.square().sum()) ** 0.5 / max(1, values.numel()) ** 0.5
