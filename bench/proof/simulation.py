"""Loads on the server of `batching` without any time passing: runs by the thousand, whose truth is known.

The policy is that of `batching.Batch`, which gives every sequence its token in every step; here a sequence is looked at
when it is read and when it ends, so that a run of a thousand requests takes hundredths of a second.
"""

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import NamedTuple

from twofour.bench.proof.batching import Steps


class Asked(NamedTuple):
    at_s: float
    prompt: int
    output: int


class Answered(NamedTuple):
    """When the request came, when its first and its last token did."""

    asked_at: float
    first_at: float
    last_at: float
    output: int

    @property
    def ttft(self) -> float:
        return self.first_at - self.asked_at

    @property
    def tpot(self) -> float:
        """Of answers of two tokens or more."""
        return (self.last_at - self.first_at) / (self.output - 1)

    @property
    def e2e(self) -> float:
        return self.last_at - self.asked_at


def poisson(count: int, rate: float, seed: int, prompt: int, output: int, sigma: float = 0.3) -> list[Asked]:
    """A seeded load: Poisson arrivals, lognormal lengths with these means."""
    draw, at_s, asked = random.Random(seed), 0.0, []
    for _ in range(count):
        at_s += draw.expovariate(rate)
        sizes = (max(2, round(mean * draw.lognormvariate(-(sigma**2) / 2, sigma))) for mean in (prompt, output))
        asked.append(Asked(at_s, *sizes))
    return asked


def noise(seed: int, sigma: float) -> Callable[[], float]:
    """How much longer than planned each step takes: a server's own noise, another for each seed."""
    draw = random.Random(seed)
    return lambda: draw.lognormvariate(0.0, sigma)


def open_loop(steps: Steps, asked: Sequence[Asked], slower: Callable[[], float] = lambda: 1.0) -> list[Answered]:
    """Every request comes at its time."""
    run = _Run(steps, slower)
    for each in asked:
        run.until(each.at_s)
        run.come(each)
    run.until(float("inf"))
    return run.answered


def closed_loop(
    steps: Steps, asked: Sequence[Asked], concurrency: int, slower: Callable[[], float] = lambda: 1.0
) -> list[Answered]:
    """So many at a time: each answer that ends brings the next request."""
    run, queue = _Run(steps, slower), iter(asked)
    for each in [each for _, each in zip(range(concurrency), queue, strict=False)]:
        run.come(each._replace(at_s=0.0))
    while run.busy:
        ended = run.step()
        for each in [each for _, each in zip(range(ended), queue, strict=False)]:
            run.come(each._replace(at_s=run.now))
    return run.answered


@dataclass
class _Reading:
    asked: Asked
    unread: int


class _Run:
    def __init__(self, steps: Steps, slower: Callable[[], float]) -> None:
        self.now = 0.0
        self.answered: list[Answered] = []
        self._steps, self._slower = steps, slower
        self._line: deque[Asked] = deque()
        self._reading: deque[_Reading] = deque()
        self._ending: list[tuple[int, int, float, Asked]] = []  # those that decode, by the step of their last token
        self._step = self._order = 0

    @property
    def busy(self) -> bool:
        return bool(self._line or self._reading or self._ending)

    def come(self, asked: Asked) -> None:
        self.now = self.now if self.busy else max(self.now, asked.at_s)
        self._line.append(asked)

    def until(self, at_s: float) -> None:
        """Take the steps that begin before then."""
        while self.busy and self.now < at_s:
            self.step()

    def step(self) -> int:
        """How many answers ended with it."""
        while self._line and len(self._reading) + len(self._ending) < self._steps.sequences:
            asked = self._line.popleft()
            self._reading.append(_Reading(asked, asked.prompt))
        decoding, room, read = len(self._ending), self._steps.reads, list[Asked]()
        while self._reading and room:
            first = self._reading[0]
            part = min(first.unread, room)
            first.unread, room = first.unread - part, room - part
            if not first.unread:
                read.append(self._reading.popleft().asked)
        self.now += self._steps.lasts(self._steps.reads - room, decoding) * self._slower()
        self._step += 1
        for asked in read:
            self._order += 1
            heappush(self._ending, (self._step + asked.output - 1, self._order, self.now, asked))
        return self._leave()

    def _leave(self) -> int:
        before = len(self.answered)
        while self._ending and self._ending[0][0] <= self._step:
            _, _, first_at, asked = heappop(self._ending)
            self.answered.append(Answered(asked.at_s, first_at, self.now, asked.output))
        return len(self.answered) - before
