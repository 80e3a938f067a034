"""Those that decode in one replica, all in every step, and so a few numbers in place of a list that is gone through."""

import heapq
from collections.abc import Iterator

from twofour.bench.capacity.sequences import Job


class Decoders:
    """How many there are, what they attend to, which need a block, and which end."""

    def __init__(self, block_size: int) -> None:
        self.count = 0
        self.attended = 0  # tokens of the cache, in the next step
        self._growing = [0] * block_size  # how many need a block in the steps of this remainder
        self._ending: list[tuple[int, int, Job]] = []  # a heap; what was preempted is left in it

    def growing(self, step: int) -> int:
        """How many need one more block in this step."""
        return self._growing[step % len(self._growing)]

    def grows(self, job: Job, step: int) -> bool:
        return not (job.offset + step) % len(self._growing)

    def add(self, job: Job, step: int) -> None:
        """From this step on it decodes."""
        job.decoding, job.offset = True, job.tokens - 1 - step
        job.last_step = step + job.output - job.generated - 1
        self.count += 1
        self.attended += job.tokens
        self._growing[-job.offset % len(self._growing)] += 1
        heapq.heappush(self._ending, (job.last_step, job.order, job))

    def remove(self, job: Job, step: int) -> None:
        """Before this step."""
        job.decoding = False
        self.count -= 1
        self.attended -= job.offset + step + 1
        self._growing[-job.offset % len(self._growing)] -= 1

    def next_end(self) -> int:
        """The step in which the next of them gets its last token."""
        while not _valid(*self._ending[0]):
            heapq.heappop(self._ending)
        return self._ending[0][0]

    def ending(self, step: int) -> Iterator[Job]:
        """Those that get their last token in this step, the oldest first."""
        while self._ending and self._ending[0][0] <= step:
            last = heapq.heappop(self._ending)
            if _valid(*last):
                yield last[2]


def _valid(last_step: int, order: int, job: Job) -> bool:
    return job.decoding and (job.last_step, job.order) == (last_step, order)
