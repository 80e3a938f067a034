"""Between scheduling and arithmetic: a runner computes chunks, and owns the memory of its cache.

In come chunks of sequences, out come logits. Read this file (the interface), `choice` (which runner a model gets),
`verify` (whether it is right), `fused` (the Llama family on CPUs, a step in one call), `generic` (any transformers
model), `paged` (the layout of its step) with `attention`, `tiles` and `compiled` (attention on a CPU), `graphs` and
`cuda_graphs` (decode steps that are captured and replayed).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

if TYPE_CHECKING:
    from torch import Tensor


class Chunk(NamedTuple):
    """Consecutive tokens of one sequence, at the positions start .. start + len(tokens)."""

    tokens: Sequence[int]
    start: int  # this many tokens of the sequence are in the cache
    blocks: Sequence[int]  # the cache blocks of the sequence, in order; those of the new tokens included
    wanted: range  # the tokens whose logits are wanted, as offsets into `tokens`
    prompt: int = 0  # how many tokens, from the first on, are of a prompt; the others were sampled

    @property
    def decodes(self) -> bool:
        """It is a single token, and that was sampled."""
        return len(self.tokens) == 1 and not self.prompt


class Runner(Protocol):
    """Computes one step."""

    def forward(self, chunks: Sequence[Chunk]) -> "Tensor":
        """Fill the chunks' part of the cache; return the wanted logits [wanted, vocabulary], in order."""

    @property
    def best(self) -> Sequence[int] | None:
        """Of each row of the last step's logits the likeliest token, or -1 where it is not finite. None: not known."""


class ModelRunner(Runner, Protocol):
    """A runner of a whole model, which can say whether it is right."""

    name: ClassVar[str]
    piece: ClassVar[int]  # tokens that it computes together, so that more of them in a step save nothing; 0: all
    shares_output: bool  # others may find the cache blocks of what was sampled: a prompt would get no other bits

    def verify(self) -> None:
        """Raise ModelError unless chunked prefill and decode give the logits of the model's own attention."""
