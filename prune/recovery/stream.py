"""The whole pruned model trained on text that does not end: every token is seen once.

The text comes chunk by chunk. While a chunk is made, the dense model is in place (`dense`): it writes the text, if it
is text of its own, and leaves the states behind its last block. Then the pruned model learns to predict the same, as in
`distil`. Text of a file comes again when all of it was used.

The first chunk is held out. Nothing that shares a run of SHARED tokens with it is trained on. It says how good the
weights are, LOOKS times in the course of a run, and the best are kept. The rate falls to 0 at the end: of so many
tokens, or of a time, of which the text takes its part.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from twofour.prune.errors import NonFiniteError, TextError
from twofour.prune.format.schemes import Scheme
from twofour.prune.model.anatomy import Anatomy
from twofour.prune.model.batches import logits, logits_behind
from twofour.prune.progress import Progress, Step, silent
from twofour.prune.recovery.dense import DenseWeights, states
from twofour.prune.recovery.distil import divergence, kept_weights, recomputed
from twofour.prune.recovery.kept import KeptWeights
from twofour.prune.recovery.training import (
    STEP_TOKENS,
    InMemory,
    Loss,
    Outcome,
    Pauses,
    Training,
    TrainingJournal,
    learn,
    mean,
    rate,
    start,
    validate,
)

STAGE = "distilling a stream"
CHUNK_TOKENS = {"cpu": 1 << 14, "cuda": 1 << 17}  # a writer's batch; on a GPU, dense weights are moved but seldom
HELD_OUT_TOKENS = 1 << 12  # at most
HELD_OUT = 64  # of the tokens asked for, one in so many at most
LOOKS = 8
FIRST_WINDOWS = 4  # of the first chunk in a stream that a time ends; each chunk after it has twice as many
SHARED = 32

NewChunk = Callable[[int, int], Tensor]  # (its number, windows) -> int64 [windows, length]; the dense model is in place


@dataclass(frozen=True)
class Length:
    """How long a stream is, in windows of `window` tokens: so many tokens, or so many seconds; one of these is 0."""

    window: int
    tokens: int = 0
    seconds: float = 0.0

    def share(self, tokens: int, seconds: float) -> float:
        """How much of it is done."""
        return min(1.0, tokens / self.tokens if self.tokens else seconds / self.seconds)

    def chunk(self, device: str, number: int) -> int:
        """The windows of a chunk. Where the time is short, the first ones are, so that it is not spent on them."""
        most = max(1, CHUNK_TOKENS[device] // self.window)
        return min(most, max(1, self.tokens // self.window) if self.tokens else FIRST_WINDOWS << min(number - 1, 32))

    @property
    def held_out(self) -> int:
        """The windows that are held out."""
        most = min(HELD_OUT_TOKENS, self.tokens // HELD_OUT) if self.tokens else HELD_OUT_TOKENS
        return max(1, most // self.window)


@dataclass(frozen=True)
class Text:
    """Parts of a text, each of one step: tokens, and what the dense model makes of them."""

    ids: tuple[Tensor, ...]  # int64 [samples, length]
    dense: tuple[Tensor, ...]  # [samples, length, width]


def distil_stream(
    anatomy: Anatomy,
    dense: DenseWeights,
    new_chunk: NewChunk,
    length: Length,
    progress: Progress = silent,
    journal: TrainingJournal | None = None,
    schemes: Mapping[str, Scheme] | None = None,
    lean: bool = False,
    recompute: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> Outcome:
    """Train all kept weights so that the pruned model predicts what the dense model predicts, on fresh text.

    schemes, lean, recompute: as in `distil`. Raises NonFiniteError as `training.train` does.
    """
    chunks, journal = Chunks(anatomy, dense, new_chunk, length), journal or InMemory()
    loss_on = partial(text_loss, anatomy, recompute)
    held_out, parts = loss_on(chunks.held_out), range(len(chunks.held_out.ids))
    kept = kept_weights(anatomy, schemes or dict.fromkeys(anatomy.linears, "2:4"), lean)
    now = journal.restore_training() or start(kept, mean(held_out, parts), journal)
    if now.state is not None:
        kept.restore(now.state)
    course, pauses = Course(now, length, progress, clock), Pauses(clock)
    while course.tick() < 1:
        text = chunks.make(now.chunk)
        while now.place < len(text.ids) and course.tick() < 1:
            _learn(kept, loss_on(text), now, course.share)
            if course.step(text.ids[now.place].numel()):
                validate(now, kept, mean(held_out, parts), journal)
            course.report()
            pauses.save(kept, now, journal)
        if now.place == len(text.ids):
            now.chunk, now.place = now.chunk + 1, 0
    validate(now, kept, mean(held_out, parts), journal)
    course.end()
    kept.put(journal.best())
    return Outcome(now.before, now.best, 1, now.tokens)


def text_loss(anatomy: Anatomy, recompute: bool, text: Text) -> Loss:
    """Return the divergence from the dense model on a text, by the number of its part."""

    def loss(part: int) -> Tensor:
        with torch.no_grad():
            wanted = logits_behind(anatomy, text.ids[part], text.dense[part].to(anatomy.device))
        with recomputed(anatomy) if recompute else nullcontext():
            return divergence(logits(anatomy.model, text.ids[part]), wanted)

    return loss


def _learn(kept: KeptWeights, loss: Loss, now: Training, share: float) -> None:
    try:
        learn(kept, loss, now.place, rate(now.done, share))
    except NonFiniteError as error:
        raise NonFiniteError(f"{STAGE}, chunk {now.chunk}: {error}") from error


class Chunks:
    """The chunks of a stream, with what the dense model makes of them. held_out: of the first one, number 0."""

    def __init__(self, anatomy: Anatomy, dense: DenseWeights, new_chunk: NewChunk, length: Length) -> None:
        self._anatomy, self._dense, self._new_chunk, self._length = anatomy, dense, new_chunk, length
        self._per_step = max(1, STEP_TOKENS // length.window)
        with dense.in_place():
            ids = new_chunk(0, length.held_out)
            self.held_out = self._taught(ids)
        self._held_out_runs = runs(ids).unique()

    def make(self, number: int) -> Text:
        """Make a chunk to train on. Raises TextError where all its text is held out."""
        with self._dense.in_place():
            ids = self._new_chunk(number, self._length.chunk(self._anatomy.device.type, number))
            fresh = ids[~torch.isin(runs(ids), self._held_out_runs).any(1)]
            if not len(fresh):
                raise TextError(f"chunk {number} of the stream is nothing but text that is held out; give more text")
            return self._taught(fresh)

    def _taught(self, ids: Tensor) -> Text:
        found = states(self._anatomy, ids)
        return Text(ids.to(self._anatomy.device).split(self._per_step), found.split(self._per_step))


def runs(ids: Tensor) -> Tensor:  # int64 [windows, length] -> [windows, runs]
    """Return a number for each run of SHARED tokens: the same for the same tokens, and hardly ever for others."""
    size = min(SHARED, ids.shape[1])
    factors = torch.randint(1, 2**62, (size,), generator=torch.Generator().manual_seed(0))
    return (ids.cpu().unfold(1, size, 1) * factors).sum(-1)  # modulo 2^64


class Course:
    """How much of a stream is done, and what is said of it on the way."""

    def __init__(self, now: Training, length: Length, progress: Progress, clock: Callable[[], float]) -> None:
        self._now, self._length, self._progress, self._clock = now, length, progress, clock
        self._began_s, self._before_s, self._before_tokens = clock(), now.spent_s, now.tokens

    @property
    def share(self) -> float:
        """How much was done when it was looked at last."""
        return self._length.share(self._now.tokens, self._now.spent_s)

    def tick(self) -> float:
        """Look at the clock; return how much is done."""
        self._now.spent_s = self._before_s + self._clock() - self._began_s
        return self.share

    def step(self, tokens: int) -> bool:
        """Count a step; tell whether it is time to look at the text that is held out."""
        before = self.share
        now = self._now
        now.tokens, now.done, now.place = now.tokens + tokens, now.done + 1, now.place + 1
        return int(LOOKS * before) < int(LOOKS * self.tick()) < LOOKS

    def report(self) -> None:
        """Say how far it is, how quick, and how good. The end is said by `end`."""
        done, total, before = self._amounts()
        if self.share < 1:
            self._progress(Step(STAGE, min(done, total - 1), total, self._elapsed_s, self._detail(), before))

    def end(self) -> None:
        """Say that it is done."""
        _, total, before = self._amounts()
        self._progress(Step(STAGE, total, total, self._elapsed_s, self._detail(), before))

    def _amounts(self) -> tuple[int, int, int]:
        """What is done, what there is, and what earlier processes did: tokens, or seconds."""
        if self._length.tokens:
            return self._now.tokens, self._length.tokens, self._before_tokens
        return int(self._now.spent_s), max(1, round(self._length.seconds)), int(self._before_s)

    @property
    def _elapsed_s(self) -> float:
        return self._now.spent_s - self._before_s

    def _detail(self) -> str:
        pace = (self._now.tokens - self._before_tokens) / max(self._elapsed_s, 1e-9)
        return f"{pace:.0f} tokens/s, held-out loss {self._now.best:.4f}"
