"""Token by token gives the text of the whole, in whole characters."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofour.serve.engine.types import Finish, Logprob, Piece, Prompt, Sampling
from twofour.serve.openai.answers.choice import Choice
from twofour.serve.openai.answers.detokenize import LONGEST_WAIT, Detokenizer, is_cut


def decode_bytes(ids: Sequence[int]) -> str:
    """One token a byte; 256 and above are special and have no text."""
    return bytes(token for token in ids if token < 256).decode(errors="replace")


def spell(token: int) -> bytes:
    return bytes([token]) if token < 256 else b""


def spoken(ids: Sequence[int], prompt: Sequence[int] = ()) -> list[str]:
    detokenizer = Detokenizer(decode_bytes, spell, prompt)
    return [*(detokenizer.step(token) for token in ids), detokenizer.flush()]


@settings(max_examples=300)
@given(st.text(max_size=40), st.text(max_size=10))
def test_pieces_join_to_the_text_and_hold_whole_characters(text: str, prompt: str) -> None:
    pieces = spoken(text.encode(), prompt.encode())
    assert "".join(pieces) == text
    if "\ufffd" not in text:
        assert not any("\ufffd" in piece for piece in pieces)


@settings(max_examples=300)
@given(st.lists(st.integers(0, 300), max_size=60))
def test_any_ids_give_what_decoding_them_gives(ids: list[int]) -> None:
    said, whole = "".join(spoken(ids)), decode_bytes(ids)
    if is_cut(b"".join(map(spell, ids))):
        said, whole = said.rstrip("\ufffd"), whole.rstrip("\ufffd")
    assert said == whole


def test_a_character_that_the_prompt_began_is_completed() -> None:
    emoji = "🤗".encode()
    assert "".join(spoken(emoji[2:] + b"!", b"hi " + emoji[:2])) == "🤗!"


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_character_that_is_cut_is_not_said(kept: int) -> None:
    assert "".join(spoken(b"hi " + "🤗".encode()[:kept])) == "hi "


@pytest.mark.parametrize("said", ["a\ufffd".encode(), b"a\xff"])
def test_what_looks_cut_and_is_not_is_said(said: bytes) -> None:
    """The character for what is none, as the model wrote it; and a byte that begins none."""
    assert "".join(spoken(said)) == "a\ufffd"


def test_garbage_is_not_held_for_ever() -> None:
    pieces = spoken([0xFF] * (LONGEST_WAIT + 1))
    assert pieces[LONGEST_WAIT - 1] != ""


def test_a_token_costs_the_same_late_as_early() -> None:
    seen: list[int] = []

    def decode(ids: Sequence[int]) -> str:
        seen.append(len(ids))
        return decode_bytes(ids)

    detokenizer = Detokenizer(decode, spell, [65] * 1000)
    for _ in range(1000):
        detokenizer.step(65)
    for _ in range(1000):
        detokenizer.step(300)  # special tokens have no text to wait for
    assert max(seen) < 16


def choice_of(stops: Sequence[str] = (), **sampling: Any) -> Choice:
    prompt = Prompt("1", (65,), Sampling(max_tokens=50, **sampling))
    return Choice(0, prompt, stops, decode_bytes, spell)


@settings(max_examples=200)
@given(st.text(alphabet="ab🤗", max_size=15), st.lists(st.integers(0, 40), max_size=8))
def test_any_grouping_of_tokens_into_pieces_gives_the_same_choice(text: str, places: list[int]) -> None:
    ids = list(text.encode())
    whole, parts = choice_of(["ab🤗", "ba"]), choice_of(["ab🤗", "ba"])
    whole.accept(Piece("1", tuple(ids), finish=Finish.LENGTH))
    edges = [0, *sorted(place % (len(ids) + 1) for place in places), len(ids)]
    for a, b in pairwise(edges):
        parts.accept(Piece("1", tuple(ids[a:b])))
    parts.accept(Piece("1", finish=Finish.LENGTH))
    assert parts.take() == whole.take()
    assert parts.generated_tokens == whole.generated_tokens


def test_tokens_after_a_stop_string_do_not_count() -> None:
    choice = choice_of(["b"], logprobs=0)
    scores = tuple(Logprob(token, -1.0) for token in b"abcd")
    choice.accept(Piece("1", tuple(b"abcd"), logprobs=scores))
    delta = choice.take()
    assert delta is not None
    assert (delta.text, delta.finish, choice.generated_tokens) == ("a", Finish.STOP, 2)
    assert [score.token for score in delta.logprobs] == list(b"ab")


def test_the_token_that_ended_the_text_is_not_shown_but_counts() -> None:
    choice = choice_of(["q"])
    choice.accept(Piece("1", tuple(b"abX"), finish=Finish.STOP, stopped_by=88))
    delta = choice.take()
    assert delta is not None
    assert (delta.text, choice.generated_tokens) == ("ab", 3)


def test_min_tokens_come_before_any_stop_string() -> None:
    choice = choice_of(["a"], min_tokens=3)
    choice.accept(Piece("1", tuple(b"aaaa")))
    delta = choice.take()
    assert delta is not None
    assert (delta.text, choice.generated_tokens) == ("aa", 3)


def test_scores_wait_for_their_text() -> None:
    choice = choice_of(logprobs=0)
    first, second = "é".encode()
    choice.accept(Piece("1", (first,), logprobs=(Logprob(first, -1.0),)))
    assert choice.take() is None
    choice.accept(Piece("1", (second,), logprobs=(Logprob(second, -2.0),)))
    delta = choice.take()
    assert delta is not None
    assert (delta.text, [score.logprob for score in delta.logprobs]) == ("é", [-1.0, -2.0])


def test_where_tokens_begin_in_the_text() -> None:
    """Parts of a character where it begins; what comes after a delta goes on from there."""
    choice = choice_of(logprobs=0)
    ids = tuple("aé🤗b".encode())
    taken: list[int] = []
    for token in ids:
        choice.accept(Piece("1", (token,), logprobs=(Logprob(token, -1.0),)))
        taken += delta.offsets if (delta := choice.take()) else ()
    assert taken == [0, 1, 1, 2, 2, 2, 2, 3]
