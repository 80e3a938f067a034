"""The real scheduler of our engine, driven step by step with no model and a clock that is only counted; and vLLM's."""

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from twofour.bench.capacity.profile import Replica
from twofour.bench.load.records import Request
from twofour.serve.engine.blocks import Blocks
from twofour.serve.engine.scheduler import Scheduler, Turn
from twofour.serve.engine.sequence import Sequence as Running
from twofour.serve.engine.types import Prompt, Sampling


@dataclass
class Answer:
    """When each token came, and how many of the prompt were in the cache."""

    times: list[float] = field(default_factory=list)
    cached_tokens: int = 0


def answers(
    replica: Replica, requests: Sequence[Request], sent_at: Mapping[int, float]
) -> tuple[dict[int, Answer], Scheduler]:
    """What the requests get that were sent then."""
    scheduler, found = _scheduler(replica), {index: Answer() for index in sent_at}
    prompts, now = prompts_of(requests), 0.0
    coming = sorted((at + replica.around.first_s, index) for index, at in sent_at.items())
    lengths = {request.index: request.output_tokens for request in requests}
    while coming or scheduler.busy:
        now = now if scheduler.busy else max(now, coming[0][0])
        while coming and coming[0][0] <= now + 1e-9:  # the sums of both sides differ by rounding
            _, index = coming.pop(0)
            sampling = Sampling(max_tokens=lengths[index])
            scheduler.add(Running(Prompt(str(index), prompts[index], sampling), seed=0, arrived_at=now))
        turns = scheduler.next_step()
        now += _seconds(replica, turns)
        for sequence in _sampled(scheduler, turns):
            answer = found[int(sequence.id)]
            answer.times.append(now)
            answer.cached_tokens = sequence.cached_tokens
        scheduler.check_idle()
        now += replica.around.between_s
    return found, scheduler


class VllmScheduler(Scheduler):
    """What vLLM's V1 scheduler does with chunked prefill, and nothing else of it."""

    def next_step(self) -> list[Turn]:
        turns: dict[Running, int] = {}
        preemptions, left = self.preemptions, self.max_num_batched_tokens
        for sequence in list(self.running):
            count = min(sequence.pending, left)
            if count and sequence in self.running and self._grow(sequence, count, turns):
                turns[sequence] = count
                left -= count
        if self.preemptions == preemptions:
            self._place_waiting(turns, left)
        return [Turn(sequence, count) for sequence, count in turns.items()]

    def _place_waiting(self, turns: dict[Running, int], budget: int) -> None:
        while self.waiting and len(self.running) < self.max_num_seqs and budget:
            sequence = self.waiting[0]
            hits = self._known_prefix(sequence)
            self.blocks.share(hits)
            found = len(hits) * self.blocks.size
            count = min(len(sequence.tokens) - found, budget)
            if self.blocks.needed(len(sequence.tokens)) - len(hits) > self.blocks.available:
                self.blocks.release(hits)
                return
            lacking = self.blocks.needed(found + count) - len(hits)
            sequence.blocks = array("i", hits + self.blocks.take(lacking))
            sequence.computed = found
            if sequence.started_at is None:
                sequence.cached_tokens = found
            self.running.append(self.waiting.popleft())
            turns[sequence] = count
            budget -= count


def _scheduler(replica: Replica) -> Scheduler:
    limits = replica.limits
    return {"twofour": Scheduler, "vllm": VllmScheduler}[limits.policy](
        Blocks(limits.kv_blocks, limits.block_size),
        limits.max_num_seqs,
        limits.max_num_batched_tokens,
        limits.prefix_cache,
        limits.shares_output,
        limits.piece,
    )


def _seconds(replica: Replica, turns: Sequence[Turn]) -> float:
    prefill = decodes = kv = pairs = 0
    for sequence, count in turns:
        seen = [sequence.computed + i + 1 for i in range(count)]
        if count == 1:
            decodes, kv = decodes + 1, kv + sum(seen)
        else:
            prefill, pairs = prefill + count, pairs + sum(seen)
    return replica.steps.seconds(prefill, decodes, kv, pairs)


def _sampled(scheduler: Scheduler, turns: Sequence[Turn]) -> list[Running]:
    """Those that get a token, in the order of `engine.loop`: first all is in the cache, then they end, one by one."""
    ready = []
    for turn in turns:
        samples = turn.sequence.samples(turn.tokens)
        turn.sequence.started_at = 0.0  # what is found in the cache later, after a preemption, is not counted
        scheduler.computed(turn)
        if samples:
            ready.append(turn.sequence)
    for sequence in ready:
        sequence.tokens.append(_new_token(int(sequence.id), sequence.generated))
        if sequence.generated == sequence.sampling.max_tokens:
            scheduler.end(sequence)
    return ready


def _new_token(index: int, number: int) -> int:
    return 1_000_000 * (index + 1) + number


def prompts_of(requests: Sequence[Request]) -> dict[int, tuple[int, ...]]:
    """Tokens for sketches: parts of one name have the same, a later turn begins with the prompt of the one before."""
    prompts: dict[int, tuple[int, ...]] = {}
    for request in requests:
        known = [
            *prompts.get(-1 if request.after is None else request.after, ()),
            *(hash((part.name, i)) % 1_000_000 for part in request.parts for i in range(part.tokens)),
        ]
        own = [_new_token(request.index, 500_000 + i) for i in range(request.prompt_tokens or 0)]
        prompts[request.index] = tuple([*known, *own][: request.prompt_tokens])
    return prompts
