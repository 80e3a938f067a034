"""How much may be under way at once. What does not fit is refused before anything is promised."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from twofour.serve.edge.errors import RequestError, invalid, overloaded
from twofour.serve.engine.types import Prompt


@dataclass
class Admission:
    """Counts sequences and prompt tokens from submission to end, waiting and running alike."""

    max_sequences: int
    max_tokens: int
    count_refusal: Callable[[str], None]  # called with the reason
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
        """Refuse at once where no sequence more would be admitted: to read and tokenise a request costs more."""
        if self.sequences >= self.max_sequences:
            raise self._full()

    def _check(self, sequences: int, tokens: int) -> None:
        if sequences > self.max_sequences:
            message = f"{sequences} sequences in one request, where {self.max_sequences} are allowed in all"
            raise invalid(f"{message}; send fewer prompts or a smaller n", "n")
        if self.sequences + sequences > self.max_sequences:
            raise self._full()
        # One request alone is bounded by the context length: an empty queue takes any.
        if self.sequences and self.tokens + tokens > self.max_tokens:
            raise self._refusal("too many prompt tokens are waiting; try again shortly")

    def _full(self) -> RequestError:
        return self._refusal("too many requests are waiting; try again shortly")

    def _refusal(self, message: str) -> RequestError:
        self.count_refusal("queue_full")
        return overloaded(message)
