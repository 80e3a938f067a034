"""Stop strings: whatever the tokens, the text is the same."""

from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from twofour.serve.openai.answers.stop_strings import StopMatcher

letters = st.text(alphabet="abé", max_size=30)
stops_of_letters = st.lists(st.text(alphabet="abé", min_size=1, max_size=5), max_size=4)


def oracle(text: str, stops: list[str]) -> tuple[str, bool]:
    """Every prefix in turn: the first that ends in a stop string is cut before it."""
    for end in range(len(text) + 1):
        for stop in stops:
            if text[:end].endswith(stop):
                return text[: end - len(stop)], True
    return text, False


def run(pieces: list[str], stops: list[str]) -> tuple[str, bool]:
    matcher, said = StopMatcher(stops), ""
    for piece in pieces:
        shown, stopped = matcher.feed(piece)
        said += shown
        if stopped:
            return said, True
    return said + matcher.flush(), False


def cut(text: str, places: list[int]) -> list[str]:
    edges = [0, *sorted(place % (len(text) + 1) for place in places), len(text)]
    return [text[a:b] for a, b in pairwise(edges)]


@settings(max_examples=400)
@given(letters, stops_of_letters, st.lists(st.integers(0, 30), max_size=12))
def test_any_split_gives_the_text_of_the_whole(text: str, stops: list[str], places: list[int]) -> None:
    assert run(cut(text, places), stops) == oracle(text, stops)


@settings(max_examples=200)
@given(letters, stops_of_letters)
def test_nothing_shown_is_ever_taken_back(text: str, stops: list[str]) -> None:
    matcher, said = StopMatcher(stops), ""
    final, _ = oracle(text, stops)
    for character in text:
        shown, stopped = matcher.feed(character)
        said += shown
        assert final.startswith(said)
        if stopped:
            break


def test_no_stops_hold_nothing_back() -> None:
    assert StopMatcher([]).feed("abc") == ("abc", False)


def test_earliest_end_wins_and_ties_go_by_the_list() -> None:
    assert run(["xabcx"], ["abcx", "bc"]) == ("xa", True)
    assert run(["xabc"], ["bc", "abc"]) == ("xa", True)
    assert run(["xabc"], ["abc", "bc"]) == ("x", True)


def test_unarmed_text_does_not_end_but_may_begin_an_end() -> None:
    matcher = StopMatcher(["ab"])
    assert matcher.feed("ab", armed=False) == ("a", False)
    assert matcher.feed("a", armed=False) == ("b", False)
    assert matcher.feed("b") == ("", True)
