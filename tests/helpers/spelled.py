"""What must hold of the bytes and the places of a text's tokens, whatever spells them."""

from itertools import pairwise
from typing import Any

from twofour.serve.openai.prompts.spelling import Spelling, is_whole, offsets

TEXTS = ["hello wörld", " two  spaces ", "🤗🤗 ok", "a\nb\tc", "é", "ﷺ", "<0x41>", "Ġ", "中文 text, e\u0301"]


def spelled(backend: Any, text: str) -> list[bytes]:
    spelling = Spelling(backend)
    return [spelling.bytes_of(token) for token in backend.encode(text, add_special_tokens=False).ids]


def check(backend: Any, text: str) -> None:
    """The tokens' bytes are the text's; a space that the tokenizer puts before it is its own."""
    tokens = spelled(backend, text)
    joined = b"".join(tokens)
    assert joined in (text.encode(), b" " + text.encode())
    begun = offsets(text, tokens)
    assert begun == sorted(begun)
    for token, start in zip(tokens, begun, strict=True):
        if is_whole(token):
            assert text[start:].startswith(token.decode()) or (start == 0 and token[:1] == b" ")
    for token, (start, end) in zip(tokens, pairwise([*begun, len(text)]), strict=False):
        assert len(text[start:end]) <= len(token)
