"""Tokenising stops where a text has surely too many tokens."""

from typing import Any

import pytest

from twofour.serve.openai.prompts.encoding import CUT, SLICE, Encoder, TooManyTokens


class Counted:
    """A tokenizer that says how much it was given."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer, self.characters = tokenizer, 0

    def encode_batch_fast(self, texts: list[str], add_special_tokens: bool) -> Any:
        self.characters += sum(map(len, texts))
        return self._tokenizer.encode_batch_fast(texts, add_special_tokens=add_special_tokens)


def test_a_long_text_is_read_to_the_first_token_too_many(byte_tokenizer: Any) -> None:
    counted = Counted(byte_tokenizer.backend_tokenizer)
    with pytest.raises(TooManyTokens):
        Encoder(counted).encode("a" * 100 * SLICE, limit=SLICE)
    assert counted.characters == 2 * SLICE


@pytest.mark.parametrize("length", [0, 5, SLICE, SLICE + 1, 3 * SLICE])
def test_what_fits_is_encoded_whole(byte_tokenizer: Any, length: int) -> None:
    text = "aé" * (length // 2) + "a" * (length % 2)
    whole = byte_tokenizer.backend_tokenizer.encode(text, add_special_tokens=True).ids
    assert Encoder(byte_tokenizer.backend_tokenizer).encode(text, len(whole) + CUT, special_tokens=True) == whole
