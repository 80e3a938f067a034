"""Bytes of tokens, of each kind of vocabulary, are those of the text."""

from pathlib import Path
from typing import Any

import pytest
import sentencepiece_kind
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_engine import build_tokenizer
from spelled import TEXTS, check
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from twofour.serve.openai.prompts.spelling import Spelling, byte_alphabet, is_whole, offsets, text_of

BYTES, PIECES = build_tokenizer().backend_tokenizer, sentencepiece_kind.build_tokenizer().backend_tokenizer
KINDS = pytest.mark.parametrize("backend", [BYTES, PIECES], ids=["byte-level", "SentencePiece"])


@KINDS
@settings(max_examples=200)
@given(st.text(max_size=30))
def test_any_text(backend: Any, text: str) -> None:
    check(backend, text)


@KINDS
@pytest.mark.parametrize("text", TEXTS)
def test_texts(backend: Any, text: str) -> None:
    check(backend, text)


@pytest.mark.demo
@pytest.mark.parametrize("text", TEXTS)
def test_a_real_byte_level_vocabulary(demo_model_folder: Path, text: str) -> None:
    check(Tokenizer.from_file(str(demo_model_folder / "tokenizer.json")), text)


def test_every_byte_has_its_character() -> None:
    assert byte_alphabet().keys() == set(ByteLevel.alphabet())
    assert sorted(byte_alphabet().values()) == list(range(256))
    for byte in range(128):
        ((spelled, _),) = ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(chr(byte))
        assert byte_alphabet()[spelled] == byte


def test_special_tokens_say_nothing_and_have_a_text() -> None:
    end = BYTES.token_to_id("<|end|>")
    assert (Spelling(BYTES).shown_bytes(end), Spelling(BYTES).bytes_of(end)) == (b"", b"<|end|>")
    assert Spelling(PIECES).bytes_of(PIECES.token_to_id("<s>")) == b"<s>"


def test_a_token_that_the_tokenizer_does_not_know() -> None:
    assert Spelling(BYTES).bytes_of(10**6) == b""


def test_words() -> None:
    """WordPiece: spaces are the decoder's."""
    backend = Tokenizer(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2}, unk_token="[UNK]"))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    assert [Spelling(backend).bytes_of(token) for token in (1, 2)] == [b" play", b"ing"]


def test_parts_of_characters_are_escaped() -> None:
    assert (text_of(b" \xf0\x9f"), text_of("é".encode())) == (" \\xf0\\x9f", "é")
    assert (is_whole(b"\xf0\x9f"), is_whole("🤗".encode())) == (False, True)


@pytest.mark.parametrize(
    ("text", "tokens", "expected"),
    [
        ("ab", [b"a", b"b"], [0, 1]),
        ("é!", [b"\xc3", b"\xa9", b"!"], [0, 0, 1]),
        ("Hello", [b"<s>", b" Hello"], [0, 0]),
        ("Hello w", [b"<s>", b" Hello", b" w"], [0, 0, 5]),
        ("<s>Hello w", [b"<s>", b" Hello", b" w"], [0, 3, 8]),
        ("xe\u0301 y", [b"x", "\u00e9".encode(), b" y"], [0, 1, 3]),
        ("", [b"<s>"], [0]),
        ("a", [b"a", b"</s>"], [0, 1]),
        (" two", [b"<s>", b" ", b" ", b"two"], [0, 0, 0, 1]),
        ("", [], []),
    ],
)
def test_offsets(text: str, tokens: list[bytes], expected: list[int]) -> None:
    assert offsets(text, tokens) == expected
