"""One replica, step by step as its engine's scheduler would have it, with time that is only counted.

The policy is that of `serve.engine.scheduler`: first come, first served; all that decode, then parts of prompts within
the budget; blocks of the whole prompt at admission, one block being left for each that runs; the newest is preempted
where blocks lack, and computed again. With the policy `vllm`, that of its V1 scheduler with chunked prefill, the prompt
must fit at admission, but takes blocks for what is computed next only, none are left for others, and a step that
preempts admits nothing.

In both, no more run than there are tokens in a step, and at most one of them, the newest, has a prompt in parts. So all
that decode do so in every step, and nothing is done for each of them: see `decoders`.
"""

from array import array
from collections import deque
from collections.abc import Callable
from math import inf

import numpy as np

from twofour.bench.capacity import profile
from twofour.bench.capacity.blocks import Cache
from twofour.bench.capacity.decoders import Decoders
from twofour.bench.capacity.sequences import Job

_DRAWS = 4096


class Replica:
    """`bring` jobs, `advance` to a time; `on_end` hears of each that ends, with the time."""

    def __init__(self, of: profile.Replica, seed: tuple[int, ...], on_end: Callable[[Job, float], None]) -> None:
        self._limits, self._steps, self._around, self._on_end = of.limits, of.steps, of.around, on_end
        self.cache = Cache(of.limits.kv_blocks)
        self.ends = array("d")  # of the steps
        self.busy_s = 0.0
        self.preemptions = self.most_running = self.most_waiting = self.most_prefill = self.most_attended = 0
        self._residuals, self._random = np.asarray(of.residuals, float), np.random.default_rng(seed)
        self._slower = array("d")  # each step than predicted
        self._coming: deque[tuple[float, Job]] = deque()
        self._waiting: deque[Job] = deque()
        self._running: dict[Job, None] = {}  # oldest first
        self._reading: dict[Job, None] = {}  # of those, the ones whose prompt is being computed
        self._decoders = Decoders(of.limits.block_size)
        self._free_at = 0.0  # when the next step can begin
        self._placed = 0
        self._full = False  # nothing that waits can be placed before something ends or is published
        self._turns: list[tuple[Job, int]] = []  # parts of prompts in this step
        self._preempting = False  # in this step
        self._vllm = of.limits.policy == "vllm"

    @property
    def begins_at(self) -> float:
        """When the next step begins; infinite while there is nothing to do."""
        if self._running or self._waiting:
            return self._free_at
        return max(self._free_at, self._coming[0][0]) if self._coming else inf

    def bring(self, job: Job, at: float) -> None:
        """A request reaches the engine, no earlier than those before it."""
        self._coming.append((at, job))

    def advance(self, until: float, once: bool = False) -> None:
        """Take the steps that begin before then. once: until one of them ends a job."""
        while (begins_at := self.begins_at) < until:
            self._free_at = begins_at
            self._receive()
            steady = not self._reading and (self._full or not self._waiting)
            if steady and self._decode(until):
                continue
            if self._step() and once:
                return

    def check_idle(self) -> None:
        """Raise RuntimeError if blocks leaked: without sequences, none is in use."""
        if self.cache.available != self.cache.count:
            raise RuntimeError(f"{self.cache.count - self.cache.available} simulated blocks are in use by nobody")

    def _receive(self) -> None:
        while self._coming and self._coming[0][0] <= self._free_at:
            self._waiting.append(self._coming.popleft()[1])
        self.most_waiting = max(self.most_waiting, len(self._waiting))

    def _decode(self, until: float) -> bool:
        """Take steps in which all that run decode, and none ends or is preempted. False: the next is none of these."""
        until = min(until, self._coming[0][0]) if self._coming else until
        all_, growing, available = self._decoders, self._decoders.growing, self.cache.available
        base_s, kv_s = self._steps.seconds(0, all_.count, 0, 0), self._steps.kv_s
        step, begin, last = len(self.ends), self._free_at, all_.next_end()
        while step < last and begin < until:
            if lacking := growing(step):
                if lacking > available:
                    break
                self.cache.take(lacking)
                available -= lacking
            if step == len(self._slower):
                self._draw()
            lasts_s = (base_s + kv_s * all_.attended) * self._slower[step]
            self.ends.append(begin + lasts_s)
            self.busy_s += lasts_s
            begin += lasts_s + self._around.between_s
            all_.attended += all_.count
            step += 1
        self._free_at = begin
        self.most_attended = max(self.most_attended, all_.attended - all_.count)  # of the last of them
        return begin >= until

    def _step(self) -> int:
        """Take any step. Returns how many jobs ended with it."""
        self._turns, self._preempting = [], False
        left = self._run(self._budget())
        if not (self._vllm and self._preempting):
            self._place_waiting(left)
        self._let_pass()
        return self._end_step()

    def _budget(self) -> int:
        most, piece = self._limits.max_num_batched_tokens, self._limits.piece
        if not piece:
            return most
        decodes = self._decoders.count + sum(_pending(job) == 1 for job in self._reading)
        return min(most, -(-(decodes + piece * 3 // 4) // piece) * piece)

    def _run(self, left: int) -> int:
        """Give those that run their turns. Returns what is left of the budget."""
        step = len(self.ends)
        growing = self._decoders.growing(step)
        if growing <= self.cache.available:
            self.cache.take(growing)
        else:
            for job in list(self._running):
                if job.decoding and self._decoders.grows(job, step):
                    self._grow(job, 1)
        left -= self._decoders.count
        for job in list(self._reading):
            if (count := min(_pending(job), left)) and self._grow(job, count):
                self._turns.append((job, count))
                left -= count
        return left

    def _grow(self, job: Job, count: int) -> bool:
        """Get blocks for so many more tokens. False: for lack of them this one was preempted."""
        lacking = self._needed(self._computed(job) + count) - self._blocks_of(job)
        while lacking > self.cache.available:
            newest = next(reversed(self._running))
            self._preempt(newest)
            if newest is job:
                return False
        self.cache.take(max(0, lacking))
        return True

    def _preempt(self, job: Job) -> None:
        computed, blocks = self._computed(job), self._blocks_of(job)
        if job.decoding:
            job.generated = computed + 1 - job.prompt
            job.spans[-1][1] = len(self.ends)
            self._decoders.remove(job, len(self.ends))
        else:
            del self._reading[job]
        del self._running[job]
        self._give_back(job, computed, blocks)
        job.computed, job.preempted = 0, True
        self._waiting.appendleft(job)
        self.preemptions += 1
        self._preempting, self._full = True, False

    def _give_back(self, job: Job, computed: int, blocks: int) -> None:
        """Release all blocks of a job; what it decoded into them is published only now, as nobody asks before."""
        if self._limits.prefix_cache:
            job.held += job.keys(len(job.held), self._published(job, computed))
        self.cache.release(job.held, len(job.shared), blocks - len(job.held))
        job.held = []

    def _published(self, job: Job, computed: int) -> int:
        """How many blocks are, or are to be, with so many tokens computed."""
        return (computed if self._limits.shares_output else min(computed, job.prompt)) // self._limits.block_size

    def _place_waiting(self, left: int) -> None:
        self._full = False
        while self._waiting and left:
            job = self._waiting[0]
            if len(self._running) >= self._limits.max_num_seqs or not self._place(job, left):
                self._full = True
                return
            self._waiting.popleft()
            self._running[job] = self._reading[job] = None
            self._placed += 1
            job.order = self._placed
            count = min(_pending(job), left)
            self._turns.append((job, count))
            left -= count

    def _place(self, job: Job, left: int) -> bool:
        """Give a waiting job its first blocks, those of a known prefix where there are some."""
        size, few = self._limits.block_size, len(job.shared)
        usable = (job.tokens - 1) // size if self._limits.prefix_cache else 0
        keys = job.keys(0, usable if job.preempted else min(usable, few))
        keys = keys[: self.cache.known(keys)]
        self.cache.use(keys, few)
        found = len(keys) * size
        lacking = self._needed(job.tokens) - len(keys)
        if self.cache.available < lacking + (0 if self._vllm else len(self._running)):
            self.cache.release(list(keys), few, 0)
            return False
        if self._vllm:
            lacking = self._needed(min(job.tokens, found + left)) - len(keys)
        self.cache.take(lacking)
        job.held, job.computed = list(keys), found
        if job.cached_tokens is None:
            job.cached_tokens = found
        return True

    def _let_pass(self) -> None:
        """The time of the step."""
        prefill = pairs = 0
        decodes, attended = self._decoders.count, self._decoders.attended
        for job, count in self._turns:
            if count == 1:  # the last token of a prompt costs what a decode does
                decodes, attended = decodes + 1, attended + job.computed + 1
            else:
                prefill, pairs = prefill + count, pairs + count * job.computed + count * (count + 1) // 2
        if len(self.ends) == len(self._slower):
            self._draw()
        lasts_s = self._steps.seconds(prefill, decodes, attended, pairs) * self._slower[len(self.ends)]
        self.ends.append(self._free_at + lasts_s)
        self.busy_s += lasts_s
        self._free_at += lasts_s + self._around.between_s
        self.most_running = max(self.most_running, len(self._running))
        self.most_prefill, self.most_attended = max(self.most_prefill, prefill), max(self.most_attended, attended)
        self._decoders.attended += self._decoders.count

    def _draw(self) -> None:
        drawn = self._random.integers(len(self._residuals), size=_DRAWS)
        self._slower.extend(self._residuals[drawn])

    def _end_step(self) -> int:
        """Publish what was computed, and sample."""
        step = len(self.ends) - 1
        for job, count in self._turns:
            job.computed += count
            self._publish(job)
        ended = list(self._decoders.ending(step))
        for job, _ in self._turns:
            if not _pending(job):
                self._sample(job, step)
                if job.generated == job.output:
                    ended.append(job)
                else:
                    self._decoders.add(job, step + 1)
        for job in ended:
            self._end(job)
        return len(ended)

    def _publish(self, job: Job) -> None:
        if not self._limits.prefix_cache:
            return
        for block in range(len(job.held), self._published(job, job.computed)):
            key = job.key(block)
            if block < len(job.shared):
                found = not self.cache.publish_shared(key)
                self._full = False  # what waits may find it, and need fewer blocks
            else:
                found = job.preempted and self.cache.has(key)
            job.held.append(None if found else key)

    def _sample(self, job: Job, step: int) -> None:
        del self._reading[job]
        job.generated += 1
        job.spans.append([step, step + 1])

    def _end(self, job: Job) -> None:
        computed = job.prompt + job.output - 1
        if job.decoding:
            job.spans[-1][1] = len(self.ends)
            job.generated = job.output
            self._decoders.remove(job, len(self.ends))
        del self._running[job]
        self._give_back(job, computed, self._needed(computed))
        self._full = False
        self._on_end(job, self.ends[-1])

    def _computed(self, job: Job) -> int:
        return job.offset + len(self.ends) if job.decoding else job.computed

    def _needed(self, tokens: int) -> int:
        return -(-tokens // self._limits.block_size)

    def _blocks_of(self, job: Job) -> int:
        return self._needed(self._computed(job) if job.decoding or self._vllm else job.tokens)


def _pending(job: Job) -> int:
    """Tokens that are not in the cache yet: 1 while it decodes."""
    return 1 if job.decoding else job.tokens - job.computed
