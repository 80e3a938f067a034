"""How much may be under way at the same time. What does not fit is refused before anything is sent."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from twofour.serve.edge.errors import RequestError, invalid, overloaded
from twofour.serve.engine.types import Prompt


@dataclass
class Admission:
    """Counts sequences and prompt tokens from a request's arrival to its end, waiting and running alike."""

    max_sequences: int
    max_tokens: int
    count_refusal: Callable[[str], None]  # called with the reason
    sequences: int = 0
    tokens: int = 0

    @contextmanager
    def place(self) -> Iterator["Place"]:
        """For one request, before it is read: until its prompts are known it counts as one sequence."""
        if self.sequences >= self.max_sequences:
            raise self._full()
        place = Place(self)
        self.sequences += 1
        try:
            yield place
        finally:
            self.sequences -= place.sequences
            self.tokens -= place.tokens

    def check_sequences(self, sequences: int) -> None:
        if sequences > self.max_sequences:
            message = f"{sequences} sequences in one request, where {self.max_sequences} are allowed in all"
            raise invalid(f"{message}; send fewer prompts or a smaller n", "n")

    def check(self, more: int, tokens: int) -> None:
        """Whether there is room for so many sequences beside those that count already."""
        if self.sequences + more > self.max_sequences:
            raise self._full()
        # One request alone is bounded by the context length: an empty queue takes any.
        if self.tokens and self.tokens + tokens > self.max_tokens:
            raise self._refusal("too many prompt tokens are waiting; try again shortly")

    def _full(self) -> RequestError:
        return self._refusal("too many requests are waiting; try again shortly")

    def _refusal(self, message: str) -> RequestError:
        self.count_refusal("queue_full")
        return overloaded(message)


@dataclass
class Place:
    """What one request takes."""

    admission: Admission
    sequences: int = 1
    tokens: int = 0

    def fill(self, prompts: tuple[Prompt, ...]) -> None:
        """Count what the request turned out to be, or refuse it."""
        more, tokens = len(prompts) - self.sequences, sum(len(prompt.tokens) for prompt in prompts)
        self.admission.check(more, tokens)
        self.admission.sequences += more
        self.admission.tokens += tokens
        self.sequences, self.tokens = len(prompts), tokens
