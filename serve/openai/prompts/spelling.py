"""The bytes behind a token, whatever kind of vocabulary spells it.

    byte-level       one character stands for each byte    "Ġwör" spelled "ĠwÃ¶r"    b" w\\xc3\\xb6r"
    SentencePiece    ▁ is a space, <0xNN> a byte           "▁wör", "<0xF0>"          b" w\\xc3\\xb6r", b"\\xf0"

The decoder of a tokenizer tells its kind. A token may hold a part of a character. So the bytes of the tokens of an
answer, joined, are the bytes of its text; but the texts of the tokens, joined, need not be its text.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
BEFORE = "a"  # a token before, since a decoder strips the space of the first one
SKIPPED = 16  # bytes between two tokens that the normalization of a tokenizer may have removed


class Spelling:
    """The tokens of one tokenizer, as bytes and as text."""

    def __init__(self, backend: Any) -> None:
        self._backend, self._decoder = backend, backend.decoder
        self._alphabet = byte_alphabet() if self._decodes("Ġ") == " " else {}
        self._has_bytes = self._decodes("<0x41>") == "A"
        self._special = {id for id, token in backend.get_added_tokens_decoder().items() if token.special}
        self.bytes_of = lru_cache(maxsize=1 << 16)(self._bytes_of)

    def shown_bytes(self, token: int) -> bytes:
        """What the token adds to an answer: nothing, if it is special."""
        return b"" if token in self._special else self.bytes_of(token)

    def _bytes_of(self, token: int) -> bytes:
        spelled = self._backend.id_to_token(token)
        if spelled is None:  # the model has more rows in its head than the tokenizer has tokens
            return b""
        if self._has_bytes and (byte := BYTE.fullmatch(spelled)):
            return bytes([int(byte[1], 16)])
        if self._alphabet and all(character in self._alphabet for character in spelled):
            return bytes(self._alphabet[character] for character in spelled)
        return self._decodes(spelled).encode()

    def _decodes(self, spelled: str) -> str:
        """The text of a token within a text."""
        if self._decoder is None:
            return spelled
        text = str(self._decoder.decode([BEFORE, spelled]))
        return text[len(BEFORE) :] if text.startswith(BEFORE) else str(self._decoder.decode([spelled]))


def byte_alphabet() -> dict[str, int]:
    """Byte-level vocabularies write visible bytes as themselves, and the others as U+0100 and above."""
    seen = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    unseen = sorted(set(range(256)) - set(seen))
    return {chr(byte): byte for byte in seen} | {chr(256 + i): byte for i, byte in enumerate(unseen)}


def is_whole(raw: bytes) -> bool:
    try:
        raw.decode()
    except UnicodeDecodeError:
        return False
    return True


def text_of(raw: bytes) -> str:
    """As OpenAI shows it: bytes of incomplete characters are escaped."""
    return raw.decode(errors="backslashreplace")


def offsets(text: str, tokens: Sequence[bytes]) -> list[int]:
    """Where each token begins in the text that they spell, in characters; one within a character, where that begins.

    What a tokenizer adds before a text, a start token or a space, has no width.
    """
    data, joined = text.encode(), b"".join(tokens)
    if joined.endswith(data):
        own = len(joined) - len(data)
        starts = [max(0, end - own) for end in accumulate(map(len, tokens[:-1]), initial=0)][: len(tokens)]
    else:
        starts = found_in(data, tokens)
    begun = [0, *accumulate(byte & 0xC0 != 0x80 for byte in data)]  # characters that begin before each byte
    return [begun[start + 1] - 1 if start < len(data) else begun[start] for start in starts]


def found_in(data: bytes, tokens: Sequence[bytes]) -> list[int]:
    """The same in bytes, for a text that differs a little from what the tokens spell.

    A token that is not in the text has no width, and the first space of the text may be missing. What the normalization
    of a tokenizer has changed is skipped.
    """
    at, starts = 0, []
    for raw in tokens:
        width, found = len(raw), data.find(raw, at, at + len(raw) + SKIPPED)
        if raw[:1] == b" " and found != at and data.startswith(raw[1:], at):
            width, found = len(raw) - 1, at
        at = max(at, found)
        starts.append(at)
        at += width if found >= 0 else 0
    return starts
