"""Token ids to text, one at a time, in whole characters.

A token's text depends on what came before it, and one character may be spread over several tokens. So a
short window of ids is decoded twice, with and without the newest, and the difference is the new text:

    ids   [ context | shown | pending ]     shown text = decode(context + shown)
                            ^ read          new text   = decode(all) minus shown text

The window is cut back after each character, so that a token costs the same however long the text is.
"""

from codecs import getincrementaldecoder
from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]
Spell = Callable[[int], bytes]
INCOMPLETE = "\ufffd"  # a decoder's text for the first bytes of a character
CONTEXT = 6  # ids kept before the new ones
LONGEST_WAIT = 64  # ids without a complete character: they will not make one


class Detokenizer:
    def __init__(self, decode: Decode, spell: Spell, prompt: Sequence[int] = ()) -> None:
        self._decode, self._spell = decode, spell
        self._ids = list(prompt[-CONTEXT:])
        self._read = len(self._ids)

    def step(self, token: int) -> str:
        """The text that this token completes; empty while a character is incomplete."""
        self._ids.append(token)
        text = self._new_text()
        if text.endswith(INCOMPLETE) and len(self._ids) - self._read < LONGEST_WAIT:
            return ""
        self._advance()
        return text

    def flush(self) -> str:
        """What is left at the end, without an incomplete last character."""
        text = self._new_text()
        if is_cut(b"".join(map(self._spell, self._ids[self._read :]))):
            text = text.rstrip(INCOMPLETE)
        self._advance()
        return text

    def _new_text(self) -> str:
        shown, text = self._decode(self._ids[: self._read]), self._decode(self._ids)
        # Not simply from len(shown) on: a new token may complete a character that the prompt began.
        return text[shared(shown, text) :]

    def _advance(self) -> None:
        self._ids = self._ids[-CONTEXT:]
        self._read = len(self._ids)


def is_cut(raw: bytes) -> bool:
    """Whether these bytes end within a character."""
    decoder = getincrementaldecoder("utf-8")("replace")
    decoder.decode(raw)
    return decoder.getstate()[0] != b""


def shared(one: str, other: str) -> int:
    """How many characters they have in common at their beginning."""
    length = min(len(one), len(other))
    while not other.startswith(one[:length]):
        length -= 1
    return length
