"""The bytes behind a token, whatever kind of vocabulary spells it.

    byte-level       one character stands for each byte    "Ġwör" spelled "ĠwÃ¶r"    b" w\\xc3\\xb6r"
    SentencePiece    ▁ is a space, <0xNN> a byte           "▁wör", "<0xF0>"          b" w\\xc3\\xb6r", b"\\xf0"

Which kind it is, its decoder is asked. A token may hold a part of a character, which no text has; so the bytes of an
answer's tokens, joined, are those of its text, and their texts need not be.
"""

import re
from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any

BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
BEFORE = "a"  # a decoder strips the space of a text's first token
SKIPPED = 16  # bytes of a text that a tokenizer's normalization may have taken between two tokens


class Spelling:
    """The tokens of one tokenizer, as bytes and as text."""

    def __init__(self, backend: Any) -> None:
        self._backend, self._decoder = backend, backend.decoder
        self._alphabet = byte_alphabet() if self._decodes("Ġ") == " " else {}
        self._has_bytes = self._decodes("<0x41>") == "A"
        self._special = {id for id, token in backend.get_added_tokens_decoder().items() if token.special}
        self.bytes_of = lru_cache(maxsize=1 << 16)(self._bytes_of)

    def said(self, token: int) -> bytes:
        """What the token adds to an answer, which leaves special tokens out."""
        return b"" if token in self._special else self.bytes_of(token)

    def _bytes_of(self, token: int) -> bytes:
        spelled = self._backend.id_to_token(token)
        if spelled is None:  # a row of the model's head that the tokenizer does not know
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
    """Byte-level vocabularies write a byte as itself where that can be seen, and the others as U+0100 and above."""
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
    """As OpenAI shows it: bytes that are no whole characters are escaped."""
    return raw.decode(errors="backslashreplace")


def offsets(text: str, tokens: Sequence[bytes]) -> list[int]:
    """Where each token begins in the text that they spell, in characters; within a character, where that begins.

    What a tokenizer puts before a text, a start token or a space of its own, has no width.
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
    """The same in bytes, where the text is not quite what the tokens spell.

    A token that is not there has no width, and the text's first space may be missing; what a tokenizer's normalization
    has changed is passed over.
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
