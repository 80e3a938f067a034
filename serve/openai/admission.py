"""How much may be under way at once. What does not fit is refused before anything is promised."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from twofour.serve.edge.errors import RequestError, invalid, overloaded
from twofour.serve.engine.types import Prompt


@dataclass
class Admission:
    """Counts sequences and prompt tokens from submission to end, waiting and running alike."""

    max_sequences: int
    max_tokens: int
    sequences: int = 0
    tokens: int = 0

    @contextmanager
    def admitted(self, prompts: tuple[Prompt, ...]) -> Iterator[None]:
        tokens = sum(len(prompt.tokens) for prompt in prompts)
        self._check(len(prompts), tokens)
        self.sequences += len(prompts)
        self.tokens += tokens
        try:
            yield
        finally:
            self.sequences -= len(prompts)
            self.tokens -= tokens

    def require_room(self) -> None:
        """Refuse what has not been read yet where no sequence more would be admitted."""
        if self.sequences >= self.max_sequences:
            raise full()

    def _check(self, sequences: int, tokens: int) -> None:
        if sequences > self.max_sequences:
            message = f"{sequences} sequences in one request, where {self.max_sequences} are allowed in all"
            raise invalid(f"{message}; send fewer prompts or a smaller n", "n")
        if self.sequences + sequences > self.max_sequences:
            raise full()
        # One request alone is bounded by the context length: an empty queue takes any.
        if self.sequences and self.tokens + tokens > self.max_tokens:
            raise overloaded("too many prompt tokens are waiting; try again shortly")


def full() -> RequestError:
    return overloaded("too many requests are waiting; try again shortly")
