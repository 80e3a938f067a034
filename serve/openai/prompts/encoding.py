"""Text to token ids, never many more of them than are allowed.

To encode a text of 8 MB only to refuse it would take seconds and a gigabyte. So a long text is first encoded in slices,
only to count tokens, and no further than the limit. At a cut some tokens differ from those of the whole text, so the
count is lowered by that much.
"""

from dataclasses import dataclass
from typing import Any

SLICE = 1 << 14  # characters
CUT = 512  # tokens at both ends of a slice that may differ from those of the whole text


class TooManyTokens(Exception):
    def __init__(self, at_least: int) -> None:
        super().__init__(f"at least {at_least} tokens")


@dataclass(frozen=True)
class Encoder:
    tokenizer: Any  # tokenizers.Tokenizer

    def encode(self, text: str, limit: int, special_tokens: bool = False) -> list[int]:
        """Raises TooManyTokens if that is certain before the end; the caller checks the exact count."""
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
        # A batch of one: for a single text, no other thread would run until it is done.
        return self.tokenizer.encode_batch_fast([text], add_special_tokens=special_tokens)[0]
