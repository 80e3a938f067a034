"""The kept weights of pruned linears, trained while what is zero stays zero.

Every linear computes with weights rounded as they will be stored. Beside them live float32 masters of the kept ones,
their places, and Adam's two moments (16 bytes a kept weight). Only kept places are ever written, so 2:4 cannot break.
The rate is relative: a step moves a weight by about `rate` times the root mean square of the kept weights of its
linear, so one rate fits all linears of all models.

In float16 most gradients would be too small to hold. So where linears compute in float16, the loss is multiplied by a
power of two, and the optimiser divides the gradients by it again (Micikevicius et al., arXiv 1710.03740). Where they
become too large for float16, the factor is halved and the step is made again.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

BETAS = (0.9, 0.95)
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # Adam's names
SCALER = ("scale", "_growth_tracker")  # GradScaler's names

Rounding = Callable[[Tensor], Tensor]  # a weight, [out, in] -> its values as they will be stored


class KeptWeights:
    """The non-zero weights of some linears and their optimiser.

    stored_dtype: what they are rounded to. rounding: what a whole weight is rounded by after that, if anything.
    rounded: the linears that this is for; None: all.
    """

    def __init__(
        self,
        linears: Iterable[nn.Linear],
        stored_dtype: torch.dtype,
        rate: float,
        rounding: Rounding | None = None,
        rounded: Collection[nn.Linear] | None = None,
    ) -> None:
        linears = list(linears)
        self._weights = [linear.weight for linear in linears]
        self._places = [weight.flatten().nonzero().flatten().int() for weight in self._weights]
        self._masters = [nn.Parameter(values.float()) for values in self.copy()]
        self._stored_dtype = stored_dtype
        self._roundings = [rounding if rounded is None or linear in rounded else None for linear in linears]
        self._rates = [rate * _root_mean_square(master.detach()) for master in self._masters]
        groups = [{"params": [master], "lr": own} for master, own in zip(self._masters, self._rates, strict=True)]
        self._adam = torch.optim.Adam(groups, betas=BETAS, fused=True)
        first = self._weights[0]
        self._scaler = torch.amp.GradScaler(first.device.type, enabled=first.dtype == torch.float16)

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

    def backward(self, loss: Tensor) -> None:
        """Compute the gradients of a loss, which are scaled where the linears compute in float16."""
        scaled: Tensor = self._scaler.scale(loss)
        scaled.backward()

    @torch.no_grad()
    def step(self, share: float) -> bool:
        """Move the weights against the gradient of the last loss, at this share of the full rate.

        False: the gradient was not finite, so nothing moved, and the next loss is scaled by less.
        """
        for weight, places, master in zip(self._weights, self._places, self._masters, strict=True):
            master.grad = None if weight.grad is None else _pick(weight.grad, places).float()
            weight.grad = None
        for group, rate in zip(self._adam.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        scale = self._scaler.get_scale()
        self._scaler.step(self._adam)
        self._scaler.update()
        self.put([master.to(self._stored_dtype) for master in self._masters])
        return self._scaler.get_scale() >= scale

    def state(self) -> dict[str, Tensor]:
        """Return what the next step depends on: masters, moments and the scale of the loss, by name. Not a copy.

        An expert that no token has been routed to yet has no moments.
        """
        moments = [self._adam.state.get(master, {}) for master in self._masters]
        adam = {f"{key}.{n}": value for n, own in enumerate(moments) for key, value in own.items()}
        masters = {f"master.{n}": master.detach() for n, master in enumerate(self._masters)}
        if not self._scaler.is_enabled():
            return adam | masters
        scaler = self._scaler.state_dict()
        return adam | masters | {name: torch.tensor(float(scaler[name])) for name in SCALER}

    @torch.no_grad()
    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go back to a state."""
        for n, master in enumerate(self._masters):
            master.copy_(state[f"master.{n}"])
            if f"step.{n}" in state:
                self._adam.state[master] = {key: state[f"{key}.{n}"].to(master.device) for key in MOMENTS}
        if self._scaler.is_enabled():
            self._scaler.load_state_dict(self._scaler.state_dict() | {name: state[name].item() for name in SCALER})
        self.put([master.to(self._stored_dtype) for master in self._masters])

    def copy(self) -> list[Tensor]:
        """Return the kept weights as they are now."""
        return [_pick(weight.detach(), places) for weight, places in zip(self._weights, self._places, strict=True)]

    @torch.no_grad()
    def put(self, kept: Sequence[Tensor]) -> None:
        """Set the kept weights."""
        for weight, places, values, rounding in zip(self._weights, self._places, kept, self._roundings, strict=True):
            weight.view(-1).index_copy_(0, places.long(), values.to(weight))
            if rounding:
                weight.copy_(rounding(weight))


def _pick(weight: Tensor, places: Tensor) -> Tensor:
    """Take the values at some places; `Tensor.take` is twice as slow and refuses int32 places."""
    return weight.flatten().index_select(0, places)


def _root_mean_square(values: Tensor) -> float:
    return float(values.square().sum()) ** 0.5 / max(1, values.numel()) ** 0.5
