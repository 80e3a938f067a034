"""One request inside a simulated replica."""

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(eq=False, slots=True)
class Job:
    """Its tokens are the prompt and `generated`; `computed` of them are in the cache, all but one while it decodes.

    While it decodes, one token is computed in each step, and before step s, `offset` + s are.
    """

    index: int  # of the request
    prompt: int  # tokens, as the next
    output: int
    shared: Sequence[int] = ()  # keys of its first blocks, see blocks.Cache
    own: int = 0  # the key of its block i beyond those is own + i
    generated: int = 0
    computed: int = 0
    decoding: bool = False
    offset: int = 0
    last_step: int = -1  # that it decodes in
    order: int = 0  # in which it was placed
    held: list[int | None] = field(default_factory=list)  # keys of its first blocks; None: published as another's
    cached_tokens: int | None = None  # found in the cache when first placed
    preempted: bool = False
    spans: list[list[int]] = field(default_factory=list)  # steps whose ends brought a token: from, to (not included)

    @property
    def tokens(self) -> int:
        return self.prompt + self.generated

    def key(self, block: int) -> int:
        return self.shared[block] if block < len(self.shared) else self.own + block

    def keys(self, begin: int, end: int) -> list[int]:
        """Those of blocks begin to end, without it."""
        few = len(self.shared)
        return [*self.shared[begin:end], *range(self.own + max(begin, few), self.own + max(end, few, begin))]
