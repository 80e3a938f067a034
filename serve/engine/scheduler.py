"""Which sequences run in the next step.

First come, first served. A step computes at most `max_num_batched_tokens` tokens: first one for every sequence that
decodes, then parts of prompts, so that a long prompt delays decoding by one chunk at most. A sequence gets the blocks
of its whole prompt when it is placed, and one more each time its output fills the last. When none is left, the newest
running sequence gives its blocks back and waits at the front of the queue, to be computed again.

With `piece`, a step is no more pieces of so many tokens than leave three quarters of one for prompts. Where a runner
computes in pieces, a larger step takes as much longer as it does more: all wait for the last of several prompts, and so
do all decodes. In one piece the decodes cost next to nothing beside a prompt.

Why every sequence ends: `refusal` admits only what the whole cache can hold; the oldest is never preempted for a
younger one; so the oldest always finishes, and then there is a new oldest.
"""

from array import array
from collections import deque
from typing import NamedTuple

from twofour.serve.engine.blocks import Blocks, extend_keys
from twofour.serve.engine.sequence import Sequence
from twofour.serve.engine.types import Prompt


class Turn(NamedTuple):
    """A sequence in a step, and how many of its pending tokens it computes there."""

    sequence: Sequence
    tokens: int


class Scheduler:
    """The sequences that wait and that run, and the blocks of those that run."""

    def __init__(
        self,
        blocks: Blocks,
        max_num_seqs: int,
        max_num_batched_tokens: int,
        prefix_cache: bool = True,
        shares_output: bool = True,
        piece: int = 0,  # tokens that are computed together; 0: all of a step
    ) -> None:
        self.blocks, self.prefix_cache, self.shares_output = blocks, prefix_cache, shares_output
        self.max_num_seqs, self.max_num_batched_tokens, self.piece = max_num_seqs, max_num_batched_tokens, piece
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []  # oldest first
        self.preemptions = self.prefix_queries = self.prefix_hits = 0

    @property
    def busy(self) -> bool:
        return bool(self.waiting or self.running)

    def add(self, sequence: Sequence) -> None:
        self.waiting.append(sequence)

    def end(self, sequence: Sequence) -> None:
        """Forget a sequence, finished or cancelled, wherever it is."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._give_back(sequence)

    def next_step(self) -> list[Turn]:
        """Choose which sequences compute how many tokens, and give them the blocks for it."""
        turns: dict[Sequence, int] = {}
        budget = self._budget()
        for sequence in sorted(self.running, key=lambda s: s.pending > 1):
            count = min(sequence.pending, budget)
            if count and sequence in self.running and self._grow(sequence, count, turns):
                turns[sequence] = count
                budget -= count
        self._place_waiting(turns, budget)
        return [Turn(sequence, count) for sequence, count in turns.items()]

    def computed(self, turn: Turn) -> None:
        """Record that the keys and values of a turn are in the cache; others can find the blocks that it filled.

        Blocks with sampled tokens only if `shares_output`: computed one by one, these tokens may have other last bits
        than in a prompt.
        """
        sequence = turn.sequence
        full_before = sequence.computed // self.blocks.size
        sequence.computed += turn.tokens
        if not self.prefix_cache:
            return
        self._extend_keys(sequence)
        shared = sequence.computed if self.shares_output else min(sequence.computed, len(sequence.prompt.tokens))
        for i in range(full_before, shared // self.blocks.size):
            self.blocks.publish(sequence.blocks[i], sequence.keys[i])

    def check_idle(self) -> None:
        """Raise RuntimeError if blocks leaked: without sequences, none is in use."""
        if not self.busy:
            self.blocks.check()
            if self.blocks.in_use:
                raise RuntimeError(f"{self.blocks.in_use} cache blocks are in use by nobody")

    def _budget(self) -> int:
        if not self.piece:
            return self.max_num_batched_tokens
        decodes = sum(sequence.pending == 1 for sequence in self.running)
        pieces = -(-(decodes + self.piece * 3 // 4) // self.piece)
        return min(self.max_num_batched_tokens, pieces * self.piece)

    def _grow(self, sequence: Sequence, count: int, turns: dict[Sequence, int]) -> bool:
        """Get blocks for `count` more tokens, if need be by preempting the newest. False: the newest was this one."""
        lacking = self.blocks.needed(sequence.computed + count) - len(sequence.blocks)
        if lacking <= 0:
            return True
        while lacking > self.blocks.available:
            newest = self.running[-1]
            self._preempt(newest)
            turns.pop(newest, None)
            if newest is sequence:
                return False
        sequence.blocks.extend(self.blocks.take(lacking))
        return True

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.waiting.appendleft(sequence)
        self._give_back(sequence)
        self.preemptions += 1

    def _give_back(self, sequence: Sequence) -> None:
        self.blocks.release(sequence.blocks)
        sequence.blocks, sequence.computed = array("i"), 0

    def _place_waiting(self, turns: dict[Sequence, int], budget: int) -> None:
        while self.waiting and len(self.running) < self.max_num_seqs and budget and self._place(self.waiting[0]):
            sequence = self.waiting.popleft()
            self.running.append(sequence)
            turns[sequence] = min(sequence.pending, budget)
            budget -= turns[sequence]

    def _place(self, sequence: Sequence) -> bool:
        """Give a waiting sequence blocks for all its tokens, those of a known prefix where there are some."""
        hits = self._known_prefix(sequence)
        self.blocks.share(hits)
        lacking = self.blocks.needed(len(sequence.tokens)) - len(hits)
        # One block is left for each that runs, or the next step might preempt what this one has placed.
        if self.blocks.available < lacking + len(self.running):
            self.blocks.release(hits)
            return False
        sequence.blocks = array("i", hits + self.blocks.take(lacking))
        sequence.computed = len(hits) * self.blocks.size
        if sequence.started_at is None:
            sequence.cached_tokens = sequence.computed
            self.prefix_queries += len(sequence.tokens) * self.prefix_cache
            self.prefix_hits += sequence.computed
        return True

    def _known_prefix(self, sequence: Sequence) -> list[int]:
        if sequence.scores_prompt or not self.prefix_cache:
            return []
        self._extend_keys(sequence)
        usable = (len(sequence.tokens) - 1) // self.blocks.size  # the last token is always computed, for its logits
        return self.blocks.match(sequence.keys[:usable])

    def _extend_keys(self, sequence: Sequence) -> None:
        extend_keys(sequence.keys, sequence.tokens, self.blocks.size, sequence.prompt.salt)


def refusal(prompt: Prompt, context_length: int, kv_tokens: int, vocab_size: int) -> str | None:
    """Why a prompt could never be finished; None: it can."""
    length, limit = len(prompt.tokens), min(context_length, kv_tokens)
    if not length:
        return "the prompt has no tokens; send at least one"
    if length + prompt.sampling.max_tokens > limit:
        return (
            f"{length} prompt tokens and max_tokens {prompt.sampling.max_tokens} do not fit into "
            f"{limit} tokens; shorten the prompt or lower max_tokens"
        )
    if not 0 <= min(prompt.tokens) <= max(prompt.tokens) < vocab_size:
        return f"a prompt token is not below the vocabulary size {vocab_size}"
    return None
