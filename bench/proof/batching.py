"""Continuous batching, one step at a time and without a clock: the server whose capacity is known.

In every step each sequence that has been read gets a token, and up to `reads` tokens of the prompts that came first are
read; a sequence gets its first token from the step that reads the end of its prompt. No more than `sequences` are under
way, others wait in line. `mock` runs the steps in real time, `simulation` the same policy in none.
"""

from collections import deque
from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(frozen=True)
class Steps:
    """How long a step takes: `base_s`, and more for each prompt token read in it and each sequence that decodes."""

    base_s: float
    read_s: float
    decode_s: float
    sequences: int = 32
    reads: int = 2048

    def lasts(self, read: int, decoding: int) -> float:
        return self.base_s + self.read_s * read + self.decode_s * decoding

    def capacity(self, prompt: float, output: float) -> float:
        """Requests per second, of these mean lengths, beyond which the line grows for ever.

        All places are taken then, and in each step one place in `output` goes to a new sequence. Exact as long as a
        step can read what comes to it.
        """
        fresh = self.sequences / output
        return fresh / (self.base_s + self.read_s * prompt * fresh + self.decode_s * (self.sequences - fresh))


@dataclass
class _Sequence:
    key: Hashable
    unread: int
    left: int  # tokens still to come


class Batch:
    """The sequences of one server. `begin` a step, let its time pass, then `end` it."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._line: deque[_Sequence] = deque()
        self._running: list[_Sequence] = []
        self._served: list[_Sequence] = []  # who gets a token at the end of the step

    @property
    def idle(self) -> bool:
        return not self._line and not self._running

    def add(self, key: Hashable, prompt: int, output: int) -> None:
        self._line.append(_Sequence(key, prompt, output))

    def drop(self, key: Hashable) -> None:
        """Forget a sequence whose client has gone."""
        self._line = deque(each for each in self._line if each.key != key)
        self._running = [each for each in self._running if each.key != key]

    def begin(self) -> float:
        """Choose the work of the next step. Returns how long it takes."""
        while self._line and len(self._running) < self._steps.sequences:
            self._running.append(self._line.popleft())
        self._served = [each for each in self._running if not each.unread]
        decoding, room = len(self._served), self._steps.reads
        for each in self._running:
            if each.unread and room:
                part = min(each.unread, room)
                each.unread, room = each.unread - part, room - part
                self._served += [] if each.unread else [each]
        return self._steps.lasts(self._steps.reads - room, decoding)

    def end(self) -> list[Hashable]:
        """The sequences that got a token; those that got their last one are gone."""
        for each in self._served:
            each.left -= 1
        self._running = [each for each in self._running if each.left > 0]
        return [each.key for each in self._served]
