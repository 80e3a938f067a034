"""One prompt that is being continued, as the engine records it.

    tokens    [ prompt ............ | output ...... ]
              0        computed                     len(tokens)
              [ in the cache | pending              )

`computed` counts the tokens whose keys and values are in the cache. The rest of the state is derived.
"""

from array import array
from dataclasses import dataclass, field

from twofour.serve.engine.grammar import Constraint
from twofour.serve.engine.types import Logprob, Prompt, Sampling


@dataclass(eq=False)
class Sequence:
    """A prompt, its output so far and its place in the cache."""

    prompt: Prompt
    seed: int  # the request's, or one drawn for it
    arrived_at: float
    tokens: list[int] = field(init=False)
    computed: int = 0
    blocks: "array[int]" = field(default_factory=lambda: array("i"))  # a table that a kernel can read
    keys: list[bytes] = field(default_factory=list)  # of the full blocks
    prompt_logprobs: list[Logprob | None] = field(default_factory=list)  # of the tokens scored so far
    cached_tokens: int = 0  # found in the prefix cache when first placed
    started_at: float | None = None  # its first step
    constraint: Constraint | None = None

    def __post_init__(self) -> None:
        self.tokens = list(self.prompt.tokens)
        if self.sampling.prompt_logprobs is not None:
            self.prompt_logprobs.append(None)  # nothing comes before the first token

    @property
    def id(self) -> str:
        return self.prompt.id

    @property
    def sampling(self) -> Sampling:
        return self.prompt.sampling

    @property
    def pending(self) -> int:
        """Tokens not yet in the cache: 1 while decoding."""
        return len(self.tokens) - self.computed

    @property
    def generated(self) -> int:
        return len(self.tokens) - len(self.prompt.tokens)

    @property
    def output(self) -> list[int]:
        return self.tokens[len(self.prompt.tokens) :]

    @property
    def scores_prompt(self) -> bool:
        """Prompt tokens still need logprobs. Cached blocks are of no use for that: they hold no logits."""
        return self.sampling.prompt_logprobs is not None and len(self.prompt_logprobs) < len(self.prompt.tokens)

    def samples(self, count: int) -> bool:
        """Computing `count` more tokens leads to the next one."""
        return count == self.pending and self.sampling.max_tokens > 0

    def wanted(self, count: int) -> range:
        """Which of the next `count` tokens need logits, as offsets.

        Logits predict the token after: from those of the last token one is sampled, those of a prompt token score the
        next.
        """
        end = self.computed + count
        if not self.scores_prompt:
            return range(count - self.samples(count), count)
        first = max(self.computed, len(self.prompt_logprobs) - 1)
        last = end if self.samples(count) else min(end, len(self.prompt.tokens) - 1)
        return range(first - self.computed, max(first, last) - self.computed)
