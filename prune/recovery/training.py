"""The training loop: steps over a text, judged on the part of it that is held out.

The text comes in parts, each a batch of one step. The last parts are not trained on: after every pass over the others
they say whether the weights got better, and the best weights are kept, the start included.
"""

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

import torch
from torch import Tensor

from twofour.prune.errors import NonFiniteError
from twofour.prune.progress import Progress, counter, silent
from twofour.prune.recovery.kept import KeptWeights

STEP_TOKENS = 512  # that one step sees, about: of the same text, many small steps win more back
WARM_UP = 8  # steps: the first moments of Adam are those of a few tokens
PATIENCE = 2  # passes without a better validation loss, after which training ends
SAVE_S = 120.0  # between two saves of a training that may be cut off, at least
SAVE_SHARE = 10  # and at least so many times the length of the last save: of 8B weights it writes 42 GB
HALVINGS = 24  # of the scale of the loss, from 2^16, before gradients are taken for infinite
HELD_OUT = 16  # one part in so many validates

Loss = Callable[[int], Tensor]  # the number of a part of the text -> its loss


@dataclass(frozen=True)
class Outcome:
    """The loss on held-out text before training and of what was kept, and how many passes it took.

    tokens: of fresh text that were trained on; None where passes went through one text.
    """

    before: float
    after: float
    passes: int
    tokens: int | None = None


@dataclass(frozen=True)
class Recovery:
    """What training won back, for the manifest: one outcome a block, and that of the whole model."""

    blocks: list[Outcome]
    model: Outcome | None

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with what the losses mean."""
        return {
            "block_loss": "squared error of the block outputs relative to the dense, mean over held-out tokens",
            "model_loss": "KL(dense || pruned) in nats per token, mean over held-out tokens",
            **asdict(self),
        }


def step_tokens(text_tokens: int) -> int:
    """Return how many tokens one step sees: fewer where a text is so short that none would be left to validate."""
    return min(STEP_TOKENS, text_tokens // 2)


def split(parts: int) -> tuple[range, range]:
    """Split the parts of a text: the last ones validate, the others train. Needs at least two."""
    held_out = max(1, parts // HELD_OUT)
    return range(parts - held_out), range(parts - held_out, parts)


class TrainingJournal(Protocol):
    """What keeps how far training is, so that it can go on after it was cut off, and the best weights so far."""

    def restore_training(self) -> "Training | None":
        """Return how far training was, or None."""
        ...

    def save_training(self, training: "Training") -> None:
        """Keep how far training is."""
        ...

    def keep_best(self, values: Iterable[Tensor]) -> None:
        """Keep the kept weights of each linear in place of those before."""
        ...

    def best(self) -> Iterable[Tensor]:
        """Give back the weights that were kept last."""
        ...


class InMemory:
    """The best weights in memory, for a training that is too short to be saved."""

    def restore_training(self) -> None:
        return None

    def save_training(self, training: "Training") -> None:
        """Do nothing."""

    def keep_best(self, values: Iterable[Tensor]) -> None:
        self._best = list(values)

    def best(self) -> list[Tensor]:
        return self._best


@dataclass
class Training:
    """How far training is: `done` steps, with the best loss on held-out text so far; the journal has those weights.

    stale: passes since then. chunk, place, tokens, spent_s: of a stream, the chunk in work and how many parts of it are
    done, and what was spent on all. state: of the optimiser, when it was saved last; None: never.
    """

    done: int
    before: float
    best: float
    stale: int = 0
    chunk: int = 1
    place: int = 0
    tokens: int = 0
    spent_s: float = 0.0
    state: dict[str, Tensor] | None = None

    def about(self) -> dict[str, Any]:
        """All but the state."""
        return {each.name: getattr(self, each.name) for each in fields(self) if each.name != "state"}


class Pauses:
    """Saves now and then: seldom enough that it takes little of the time."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock, self._saved, self._pause_s = clock, clock(), SAVE_S

    def save(self, kept: KeptWeights, now: Training, journal: TrainingJournal) -> None:
        """Save if it is time."""
        if (began := self._clock()) - self._saved < self._pause_s:
            return
        now.state = kept.state()
        journal.save_training(now)
        self._saved = self._clock()
        self._pause_s = max(SAVE_S, SAVE_SHARE * (self._saved - began))


def train(
    kept: KeptWeights,
    loss: Loss,
    parts: int,
    passes: int,
    seed: int,
    stage: str = "",
    progress: Progress = silent,
    journal: TrainingJournal | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Outcome:
    """Train on most parts of a text, validate on the rest after every pass, and keep the best, the start included.

    Raises NonFiniteError if the start has no finite loss, or a part in training.
    """
    texts, held_out = split(parts)
    order = _orders(len(texts), passes, seed)
    journal = journal or InMemory()
    now = journal.restore_training() or start(kept, mean(loss, held_out), journal)
    if now.state is not None:
        kept.restore(now.state)
    step, pauses = counter(stage, len(order), progress, now.done), Pauses(clock)
    while now.done < len(order) and now.stale < PATIENCE:
        try:
            learn(kept, loss, order[now.done], rate(now.done, now.done / len(order)))
        except NonFiniteError as error:
            raise NonFiniteError(f"{stage}: {error}") from error
        now.done += 1
        if now.done % len(texts) == 0:
            validate(now, kept, mean(loss, held_out), journal)
        step(f"held-out loss {now.best:.4f}")
        pauses.save(kept, now, journal)
    kept.put(journal.best())
    return Outcome(now.before, now.best, -(-now.done // len(texts)))


def learn(kept: KeptWeights, loss: Loss, part: int, share: float) -> None:
    """Make one step on a part of the text. Raises NonFiniteError if it has no finite loss, or gradient."""
    for _ in range(HALVINGS):
        with kept.training():
            found = loss(part)
            if not bool(torch.isfinite(found)):
                raise NonFiniteError(_not_finite("loss", part))
            if kept.step(found, share):
                return
    raise NonFiniteError(_not_finite("gradient", part))


def _not_finite(what: str, part: int) -> str:
    return (
        f"no finite {what} on part {part} of the text; check the model's weights and dtype, or give a preset that "
        "trains less"
    )


def start(kept: KeptWeights, loss: float, journal: TrainingJournal) -> Training:
    """Begin with weights that have this loss on held-out text. Raises NonFiniteError where it is none."""
    if not math.isfinite(loss):
        raise NonFiniteError("the pruned model has no finite loss on held-out text; check the model's weights")
    journal.keep_best(kept.copy())
    return Training(0, loss, loss)


def validate(now: Training, kept: KeptWeights, loss: float, journal: TrainingJournal) -> None:
    """Keep the weights if their loss on held-out text is the best so far."""
    if loss < now.best:
        now.best, now.stale = loss, 0
        journal.keep_best(kept.copy())
    else:
        now.stale += 1


def rate(steps: int, share: float) -> float:
    """Return the share of the full rate after some steps: up in a straight line first, then half a cosine to 0.

    share: of the whole training that these steps are.
    """
    return min(1.0, (steps + 1) / WARM_UP) * (1 + math.cos(math.pi * share)) / 2


def _orders(parts: int, passes: int, seed: int) -> list[int]:  # passes * parts of them
    """A new order for every pass."""
    generator = torch.Generator().manual_seed(seed)
    return [part for _ in range(passes) for part in torch.randperm(parts, generator=generator).tolist()]


@torch.no_grad()
def mean(loss: Loss, parts: range) -> float:
    """Return the mean loss of some parts of a text."""
    return sum(float(loss(part)) for part in parts) / len(parts)
