"""A server with a paged cache, one step at a time and without a clock: the truth that a plan is held against.

Its rules are those that docs/serving.md states of ours, and it shares no code with our engine nor with the simulator of
a plan, so that neither can hide a mistake of the other:

- first come, first served; `sequences` at most are under way
- a step computes `tokens` at most: one for each sequence that decodes, then parts of prompts, oldest first
- a sequence begins when there are pages for all its words, and one more for each that is under way
- where an answer fills its last page and there is no other, the youngest gives its pages back and waits, first in line,
  to be computed again
- with `remembers`, whole pages of known words are found again; those that nobody uses go first when room is needed, the
  one that was let go earliest first

A step takes fixed + prefill p + decode n + kv v + pair q seconds, as of `capacity.step_model`, times its own noise.
"""

import random
from collections import Counter, deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

SAID = "word"  # each token of an answer


@dataclass(frozen=True)
class Machine:
    """How fast it is, and how large."""

    fixed_s: float
    prefill_s: float  # for each prompt token
    decode_s: float  # for each sequence that decodes
    kv_s: float = 0.0  # for each token that a decoding sequence attends to
    pair_s: float = 0.0  # for each pair of a prompt token and a token that it attends to
    between_s: float = 0.0  # from a step to the next
    noise: float = 0.0  # the deviation of the logarithm of how much longer a step takes
    sequences: int = 32
    tokens: int = 512  # of a step
    pages: int = 4096
    page: int = 16  # tokens
    remembers: bool = True
    seed: int = 0  # of the noise


class Step(NamedTuple):
    """A line of the log; the first four named as in our server's."""

    prefill_tokens: int
    decodes: int
    kv_tokens: int  # that were attended to, and those computed
    seconds: float
    decode_kv_tokens: int
    prefill_pairs: int
    waiting: int


class Pages:
    """How many pages are whose. One with known words has a name, which stands for all words from the first on."""

    def __init__(self, count: int) -> None:
        self.count, self.unnamed = count, 0
        self._users = Counter[int]()  # of named pages
        self._resting: dict[int, None] = {}  # named, and used by nobody; in the order in which they were let go

    @property
    def spare(self) -> int:
        return self.count - self.unnamed - len(self._users)

    @property
    def used(self) -> int:
        return self.count - self.spare

    def known(self, names: Sequence[int]) -> int:
        """How many of the first are there."""
        return next((i for i, name in enumerate(names) if name not in self), len(names))

    def __contains__(self, name: int) -> bool:
        return name in self._users or name in self._resting

    def hold(self, name: int) -> None:
        self._resting.pop(name, None)
        self._users[name] += 1

    def take(self, count: int) -> None:
        """Unnamed ones; the caller has looked at `spare`."""
        self.unnamed += count
        while self.unnamed + len(self._users) + len(self._resting) > self.count:
            del self._resting[next(iter(self._resting))]

    def christen(self, name: int) -> bool:
        """Name one of the unnamed. False: another with these words has the name."""
        if name in self:
            return False
        self.unnamed -= 1
        self._users[name] = 1
        return True

    def let_go(self, name: int) -> None:
        self._users[name] -= 1
        if not self._users[name]:
            del self._users[name]
            self._resting[name] = None


@dataclass(eq=False)
class _Job:
    key: Hashable
    words: list[str]  # of the prompt, then of the answer
    left: int  # tokens still to come
    done: int = 0  # words that are in the cache
    names: list[int] = field(default_factory=list)  # of the whole pages of its words
    held: list[int | None] = field(default_factory=list)  # its pages: None, one without a name

    @property
    def owed(self) -> int:
        return len(self.words) - self.done


class PagedBatch:
    """The sequences of one server. `begin` a step, let its time pass, then `end` it."""

    def __init__(self, machine: Machine) -> None:
        self._machine, self.pages = machine, Pages(machine.pages)
        self._line = deque[_Job]()
        self._active: list[_Job] = []  # oldest first
        self._work: dict[_Job, int] = {}  # tokens that this step computes of each
        self._draw = random.Random(machine.seed)
        self.total = self.preemptions = 0
        self.log = deque[Step](maxlen=10_000)

    @property
    def idle(self) -> bool:
        return not self._line and not self._active

    @property
    def under_way(self) -> int:
        return len(self._active)

    @property
    def waiting(self) -> int:
        return len(self._line)

    def holds(self, prompt: int, output: int) -> bool:
        """Whether such a request can ever end."""
        return prompt + output <= self._machine.pages * self._machine.page

    def add(self, key: Hashable, words: Sequence[str], output: int) -> None:
        self._line.append(_Job(key, list(words), output))

    def drop(self, key: Hashable) -> None:
        """Forget a sequence whose client has gone."""
        self._line = deque(job for job in self._line if job.key != key)
        for job in [job for job in self._active if job.key == key]:
            self._leave(job)

    def begin(self) -> float:
        """Choose the work of the next step. Returns how long it takes, with the time until it begins."""
        self._work, room = {}, self._machine.tokens
        decoding = [job for job in self._active if job.owed == 1]
        for job in [*decoding, *(job for job in self._active if job.owed > 1)]:
            part = min(job.owed, room)
            if part and job in self._active and self._extend(job, job.done + part):
                self._work[job] = part
                room -= part
        self._admit(room)
        step = self._step()
        self.total += 1
        self.log.append(step)
        return self._machine.between_s + step.seconds

    def end(self) -> list[Hashable]:
        """The sequences that got a token; those that got their last one are gone."""
        served = []
        for job in [job for job in self._active if job in self._work]:
            before, job.done = job.done, job.done + self._work[job]
            self._christen(job, before)
            if not job.owed:
                job.words.append(SAID)
                job.left -= 1
                served.append(job.key)
            if not job.left:
                self._leave(job)
        return served

    def _admit(self, room: int) -> None:
        while self._line and room and len(self._active) < self._machine.sequences:
            job = self._line[0]
            self._name(job)
            whole = (len(job.words) - 1) // self._machine.page  # the last word is always computed
            found = job.names[: self.pages.known(job.names[:whole])] if self._machine.remembers else []
            for name in found:
                self.pages.hold(name)
            lacking = -(-len(job.words) // self._machine.page) - len(found)
            if self.pages.spare < lacking + len(self._active):
                for name in reversed(found):
                    self.pages.let_go(name)
                return
            self.pages.take(lacking)
            job.held, job.done = [*found, *[None] * lacking], len(found) * self._machine.page
            self._active.append(self._line.popleft())
            self._work[job] = min(job.owed, room)
            room -= self._work[job]

    def _extend(self, job: _Job, words: int) -> bool:
        """Get the pages for so many words. False: the job itself had to make room."""
        lacking = -(-words // self._machine.page) - len(job.held)
        while lacking > self.pages.spare:
            youngest = self._active[-1]
            self._leave(youngest)
            self._work.pop(youngest, None)
            self._line.appendleft(youngest)
            self.preemptions += 1
            if youngest is job:
                return False
        if lacking > 0:
            self.pages.take(lacking)
            job.held += [None] * lacking
        return True

    def _leave(self, job: _Job) -> None:
        self._active.remove(job)
        for name in reversed(job.held):
            if name is None:
                self.pages.unnamed -= 1
            else:
                self.pages.let_go(name)
        job.held, job.done = [], 0

    def _name(self, job: _Job) -> None:
        """Name the whole pages of its words; no name is given twice to different beginnings."""
        page = self._machine.page
        for begin in range(len(job.names) * page, len(job.words) - page + 1, page):
            job.names.append(hash((job.names[-1] if job.names else 0, *job.words[begin : begin + page])))

    def _christen(self, job: _Job, before: int) -> None:
        """The pages that have become full can be found by others. before: words that were in the cache already."""
        if not self._machine.remembers:
            return
        self._name(job)
        for at in range(before // self._machine.page, job.done // self._machine.page):
            if self.pages.christen(job.names[at]):
                job.held[at] = job.names[at]

    def _step(self) -> Step:
        parts = [(job.done, self._work[job]) for job in self._active if job in self._work]
        reads = [(done, part) for done, part in parts if part > 1]
        prefill, decodes = sum(part for _, part in reads), len(parts) - len(reads)
        kv = sum(done + 1 for done, part in parts if part == 1)
        pairs = sum(part * done + part * (part + 1) // 2 for done, part in reads)
        machine = self._machine
        seconds = machine.fixed_s + machine.prefill_s * prefill + machine.decode_s * decodes
        seconds = (seconds + machine.kv_s * kv + machine.pair_s * pairs) * self._draw.lognormvariate(0.0, machine.noise)
        attended = kv + sum(done + part for done, part in reads)
        return Step(prefill, decodes, attended, seconds, kv, pairs, len(self._line))
