"""The kept weights of pruned linears, trained while what is zero stays zero.

Every linear computes with weights rounded as they will be stored; beside them live float32 masters of the kept ones,
their places, and Adam's two moments (16 bytes a kept weight). Only kept positions are ever written, so 2:4 cannot
break. The rate is relative: a step moves a weight by about `rate` times the root mean square of the kept weights of its
linear, so one rate fits all linears of all models.

Where the linears compute in float16, gradients would mostly be too small for it: the loss is multiplied by a power of
two, which the optimiser takes out of the gradients again (Micikevicius et al., arXiv 1710.03740). Where they are too
large for float16 then, it is halved, and the step is made again.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from twofour.prune.errors import NonFiniteError
from twofour.prune.progress import Progress, counter, silent

BETAS = (0.9, 0.95)
WARM_UP = 8  # steps: the first moments of Adam are those of a few tokens
PATIENCE = 2  # passes without a better validation loss, after which training ends
SAVE_S = 120.0  # between two saves of a training that may be cut off, at least
SAVE_SHARE = 10  # and so many times as long as the last save took: of 8B weights it writes 42 GB
HALVINGS = 24  # of the scale of the loss, from 2^16, before gradients are taken for infinite
MOMENTS = ("step", "exp_avg", "exp_avg_sq")  # Adam's names
SCALER = ("scale", "_growth_tracker")  # GradScaler's names
HELD_OUT = 16  # one part in so many validates

Rounding = Callable[[Tensor], Tensor]  # a weight, [out, in] -> as it will be stored
Loss = Callable[[int], Tensor]  # the number of a part of the text -> its loss


@dataclass(frozen=True)
class Outcome:
    """The loss on held-out text before training and of what was kept, and how many passes it took."""

    before: float
    after: float
    passes: int


class KeptWeights:
    """The non-zero weights of some linears and their optimiser.

    stored: the dtype that they are rounded to. rounding: of a whole weight, [out, in], where that is not all.
    """

    def __init__(
        self, linears: Iterable[nn.Linear], stored: torch.dtype, rate: float, rounding: Rounding | None = None
    ) -> None:
        self._weights = [linear.weight for linear in linears]
        self._places = [weight.flatten().nonzero().flatten().int() for weight in self._weights]
        self._masters = [nn.Parameter(values.float()) for values in self.copy()]
        self._stored, self._rounding = stored, rounding
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

        False: it had no finite gradient, so nothing moved, and the next loss is scaled by less.
        """
        for weight, places, master in zip(self._weights, self._places, self._masters, strict=True):
            master.grad = None if weight.grad is None else _pick(weight.grad, places).float()
            weight.grad = None
        for group, rate in zip(self._adam.param_groups, self._rates, strict=True):
            group["lr"] = rate * share
        scale = self._scaler.get_scale()
        self._scaler.step(self._adam)
        self._scaler.update()
        self.put([master.to(self._stored) for master in self._masters])
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
        self.put([master.to(self._stored) for master in self._masters])

    def copy(self) -> list[Tensor]:
        """Return the kept weights as they are now."""
        return [_pick(weight.detach(), places) for weight, places in zip(self._weights, self._places, strict=True)]

    @torch.no_grad()
    def put(self, kept: Sequence[Tensor]) -> None:
        """Set the kept weights."""
        for weight, places, values in zip(self._weights, self._places, kept, strict=True):
            weight.view(-1).index_copy_(0, places.long(), values.to(weight))
            if self._rounding:
                weight.copy_(self._rounding(weight))


def _pick(weight: Tensor, places: Tensor) -> Tensor:
    """`take`, which is twice as slow and knows no int32 places."""
    return weight.flatten().index_select(0, places)


def split(parts: int) -> tuple[range, range]:
    """Split the parts of a text in those that train and those, at the end, that validate. Needs at least two."""
    held_out = max(1, parts // HELD_OUT)
    return range(parts - held_out), range(parts - held_out, parts)


class Keep(Protocol):
    """Keeps how far training is, so that one that was cut off can go on."""

    def restore_training(self) -> "Training | None":
        """Return where training was, or None."""
        ...

    def save_training(self, training: "Training") -> None:
        """Keep where training is."""
        ...


@dataclass
class Training:
    """Where training is: after `done` steps, with the best loss on held-out text so far, and the weights that had it.

    stale: passes since then. state: of the optimiser; None where it is at its start.
    """

    done: int
    before: float
    best: float
    stale: int
    values: list[Tensor]
    state: dict[str, Tensor] | None = None


def train(
    kept: KeptWeights,
    loss: Loss,
    parts: int,
    passes: int,
    seed: int,
    stage: str = "",
    progress: Progress = silent,
    keep: Keep | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Outcome:
    """Train on most parts of a text, validate on the rest after every pass, and keep the best, the start included.

    Raises NonFiniteError if the start has no finite loss, or a part in training.
    """
    texts, held_out = split(parts)
    order = _orders(len(texts), passes, seed)
    now = (keep and keep.restore_training()) or _start(kept, loss, held_out)
    if now.state is not None:
        kept.restore(now.state)
    step, saved, pause_s = counter(stage, len(order), progress, now.done), clock(), SAVE_S
    while now.done < len(order) and now.stale < PATIENCE:
        try:
            learn(kept, loss, order[now.done], rate(now.done, len(order)))
        except NonFiniteError as error:
            raise NonFiniteError(f"{stage}: {error}") from error
        now.done += 1
        if now.done % len(texts) == 0:
            _validate(now, kept, _mean(loss, held_out))
        step(f"held-out loss {now.best:.4f}")
        if keep and (began := clock()) - saved >= pause_s:
            now.state = kept.state()
            keep.save_training(now)
            saved = clock()
            pause_s = max(SAVE_S, SAVE_SHARE * (saved - began))
    kept.put(now.values)
    return Outcome(now.before, now.best, -(-now.done // len(texts)))


def learn(kept: KeptWeights, loss: Loss, part: int, share: float) -> None:
    """Make one step on a part of the text. Raises NonFiniteError if it has no finite loss, or gradient."""
    for _ in range(HALVINGS):
        with kept.training():
            found = loss(part)
            if not bool(torch.isfinite(found)):
                raise NonFiniteError(_not_finite("loss", part))
            kept.backward(found)
        if kept.step(share):
            return
    raise NonFiniteError(_not_finite("gradient", part))


def _not_finite(what: str, part: int) -> str:
    return (
        f"no finite {what} on part {part} of the text; check the model's weights and dtype, or give a preset that "
        "trains less"
    )


def _start(kept: KeptWeights, loss: Loss, held_out: range) -> Training:
    before = _mean(loss, held_out)
    if not math.isfinite(before):
        raise NonFiniteError("the pruned model has no finite loss on held-out text; check the model's weights")
    return Training(0, before, before, 0, kept.copy())


def _validate(now: Training, kept: KeptWeights, loss: float) -> None:
    if loss < now.best:
        now.best, now.stale, now.values = loss, 0, kept.copy()
    else:
        now.stale += 1


def rate(done: int, total: int) -> float:
    """Return the share of the full rate after some steps: up in a straight line first, then half a cosine to 0."""
    return min(1.0, (done + 1) / WARM_UP) * (1 + math.cos(math.pi * done / total)) / 2


def _orders(parts: int, passes: int, seed: int) -> list[int]:  # passes * parts of them
    """A new order for every pass."""
    generator = torch.Generator().manual_seed(seed)
    return [part for _ in range(passes) for part in torch.randperm(parts, generator=generator).tolist()]


@torch.no_grad()
def _mean(loss: Loss, parts: range) -> float:
    return sum(float(loss(part)) for part in parts) / len(parts)


def _root_mean_square(values: Tensor) -> float:
    return float(values.square().sum()) ** 0.5 / max(1, values.numel()) ** 0.5
