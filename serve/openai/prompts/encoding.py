"""Text to token ids, never many more of them than are allowed.

A text of 8 MB that is too long by far would take seconds and a gigabyte, to be refused for its length. So a long text
is first encoded in slices, of which only the tokens are counted, up to the first too many. At a cut some tokens are
others than in the whole text; that much is taken off the count.
"""

from dataclasses import dataclass
from typing import Any

SLICE = 1 << 14  # characters
CUT = 512  # tokens at both ends of a slice that may be others than in the whole text


class TooManyTokens(Exception):
    def __init__(self, at_least: int) -> None:
        super().__init__(f"at least {at_least} tokens")


@dataclass(frozen=True)
class Encoder:
    tokenizer: Any  # tokenizers.Tokenizer

    def encode(self, text: str, limit: int, special_tokens: bool = False) -> list[int]:
        """Raises TooManyTokens, where that is certain before the end; a few over the limit are for the caller."""
        if len(text) > SLICE:
            self._check(text, limit)
        return list(self._encoding(text, special_tokens).ids)

    def _check(self, text: str, limit: int) -> None:
        tokens = 0
        for start in range(0, len(text), SLICE):
            tokens += max(0, len(self._encoding(text[start : start + SLICE])) - CUT)
            if tokens > limit:
                raise TooManyTokens(tokens)

    def _encoding(self, text: str, special_tokens: bool = False) -> Any:
        # A batch of one: for a single text the interpreter would be held until it is done.
        return self.tokenizer.encode_batch_fast([text], add_special_tokens=special_tokens)[0]
