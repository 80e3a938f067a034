"""How far a long step is: a plain value, and a printer for it (a bar on a terminal, lines elsewhere)."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Protocol, TypeVar

from tqdm import tqdm

LINE_EVERY_S = 5.0


@dataclass(frozen=True)
class Step:
    """`done` of `total` parts of a stage, reached after `elapsed_s`. before: parts that an earlier run did."""

    stage: str
    done: int
    total: int
    elapsed_s: float
    detail: str = ""
    before: int = 0

    @property
    def left_s(self) -> float | None:
        """The time left at the pace so far; None before the first part is done."""
        done = self.done - self.before
        return self.elapsed_s / done * (self.total - self.done) if done else None


Progress = Callable[[Step], None]


def silent(step: Step) -> None:
    """Report nothing."""


T = TypeVar("T", covariant=True)


class SizedIterable(Sized, Iterable[T], Protocol[T]):
    """What can be counted and walked through."""


def track(parts: SizedIterable[T], stage: str, progress: Progress) -> Iterator[T]:
    """Go through the parts and report after each."""
    step = counter(stage, len(parts), progress)
    for part in parts:
        yield part
        step()


class Counter(Protocol):
    """Called after each part, with a detail to show."""

    def __call__(self, detail: str = "") -> None: ...


def counter(stage: str, total: int, progress: Progress, before: int = 0) -> Counter:
    """Return what counts each of `total` parts when it is done; an earlier run did `before` of them."""
    started, done = time.perf_counter(), before

    def step(detail: str = "") -> None:
        nonlocal done
        done += 1
        progress(Step(stage, done, total, time.perf_counter() - started, detail, before))

    return step


def to_stderr() -> Progress:
    """Report to standard error: a bar on a terminal, elsewhere a line every few seconds and at the end."""
    return _bar() if sys.stderr.isatty() else _lines()


def _bar() -> Progress:
    bar: tqdm | None = None

    def show(step: Step) -> None:
        nonlocal bar
        bar = bar or tqdm(total=step.total, initial=step.before, desc=step.stage, file=sys.stderr)
        bar.set_postfix_str(step.detail, refresh=False)
        bar.update(step.done - bar.n)
        if step.done == step.total:
            bar.close()
            bar = None

    return show


def _lines() -> Progress:
    stage, printed_s = "", 0.0

    def show(step: Step) -> None:
        nonlocal stage, printed_s
        if step.stage != stage:
            stage, printed_s = step.stage, 0.0
        if step.done == step.total or step.elapsed_s - printed_s >= LINE_EVERY_S:
            printed_s = step.elapsed_s
            print(line(step), file=sys.stderr, flush=True)

    return show


def line(step: Step) -> str:
    """Say a step in one line."""
    left = "" if not step.left_s else f", {step.left_s:.0f} s left"
    detail = f": {step.detail}" if step.detail else ""
    return f"{step.stage} {step.done}/{step.total} after {step.elapsed_s:.0f} s{left}{detail}"
