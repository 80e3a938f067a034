import random
from itertools import islice, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofour.bench.load.records import Message, Request
from twofour.bench.load.workload import NONCE_WORDS, Lengths, marked, shared_share
from twofour.bench.traffic import sessions
from twofour.bench.traffic.conversations import Conversation
from twofour.bench.traffic.conversations import Turn as Said
from twofour.bench.traffic.lengths import Pause
from twofour.bench.traffic.sessions import Session, Turn
from twofour.bench.traffic.traces import BLOCK, Row


def sent(made: list[Session]) -> list[Request]:
    found: list[Request] = []
    for session in made:
        found += sessions.requests(session, len(found), 2.5)
    return found


def of_words(
    count: int, prompt: Lengths, answer: Lengths, turns: Lengths, share: float = 0.0, prefixes: int = 1, seed: int = 1
) -> list[Session]:
    def sizes(draw: random.Random) -> tuple[int, int]:
        return prompt.draw(draw), answer.draw(draw)

    return list(islice(sessions.of_words(sizes, turns, Pause(0.25), share, prefixes, seed), count))


def test_a_turn_is_sent_with_all_that_was_said_before() -> None:
    session = Session([Turn("a", 9, 3, "A", 3), Turn("b", 4, 2, "B", 2), Turn("c", 5, 1)], [0.5, 0.7], "be short")
    one, two, three = sessions.requests(session, 7, 1.5)
    assert [each.index for each in (one, two, three)] == [7, 8, 9]
    assert [each.after for each in (one, two, three)] == [None, 7, 8]
    assert [each.think_s for each in (one, two, three)] == [0.0, 0.5, 0.7]
    assert [each.at_s for each in (one, two, three)] == [1.5, 0.0, 0.0]
    assert [each.family for each in (one, two, three)] == ["7"] * 3
    system, *talk = three.history
    assert system == Message("system", "be short") and one.history == (system,)
    assert talk == [Message("user", "a"), Message("assistant", "A"), Message("user", "b"), Message("assistant", "B")]
    assert three.prompt == "c"
    assert three.prompt_tokens is None  # of the system's message no length is known


@given(st.integers(5, 40), st.integers(1, 9), st.integers(1, 5), st.sampled_from([0.0, 0.3, 0.9]), st.integers(0, 9))
def test_prompts_are_as_long_as_planned_with_all_turns_before_them(
    prompt: int, answer: int, turns: int, share: float, seed: int
) -> None:
    made = of_words(4, Lengths(prompt, 0.5), Lengths(answer, 0.5), Lengths(turns), share, 2, seed)
    for request in sent(made):
        assert len(marked(request, "run").split()) == request.prompt_tokens


def test_the_next_turn_begins_with_the_one_before_and_its_planned_answer() -> None:
    made = sent(of_words(6, Lengths(20), Lengths(7), Lengths(3)))
    assert len(made) == 18
    for before, request in pairwise(made):
        if request.after is not None:
            assert request.after == before.index
            first, then = marked(before, "n").split(), marked(request, "n").split()
            assert then[: len(first)] == first
            assert len(then) == len(first) + 7 + 20
    openings = {tuple(marked(request, "n").split()[:NONCE_WORDS]) for request in made}
    assert len(openings) == 6  # one a session


@pytest.mark.parametrize(("share", "prefixes"), [(0.25, 1), (0.8, 1), (0.8, 5)])
def test_a_stated_share_is_shared(share: float, prefixes: int) -> None:
    made = sent(of_words(300, Lengths(100, 0.2), Lengths(4), Lengths(1), share, prefixes))
    beginnings = {request.family for request in made}
    assert len(beginnings) == prefixes
    found = shared_share(made)
    assert share * (1 - 2 * prefixes / 300) - 0.02 <= found <= share + 0.01
    assert shared_share([request for request in made if request.family == "prefix 0"]) == pytest.approx(share, abs=0.02)
    assert not marked(made[0], "other run").startswith(marked(made[0], "run")[:12])


def test_without_a_share_nothing_is_shared() -> None:
    assert shared_share(sent(of_words(50, Lengths(20), Lengths(4), Lengths(1)))) == 0.0


def test_conversations_again_and_again_up_to_so_many_turns() -> None:
    told = [
        Conversation(None, [Said("a", "A"), Said("b", "B"), Said("c", None)], 3),
        Conversation("s", [Said("d", "D")]),
    ]
    made = list(islice(sessions.of_conversations(told, Lengths(5), Lengths(2), Pause(1.0), False, 0), 3))
    assert [[turn.prompt for turn in session.turns] for session in made] == [["a", "b"], ["d"], ["a", "b"]]
    assert [[turn.output_tokens for turn in session.turns] for session in made] == [[3, 3], [5], [3, 3]]
    assert [(session.system, session.think_s) for session in made] == [(None, [1.0]), ("s", []), (None, [1.0])]
    requests = sent(made)
    assert [request.prompt_tokens for request in requests] == [None] * 5
    assert len({marked(request, "n").split()[0] for request in requests if request.after is None}) == 3


def test_counted_answers_are_as_long_as_in_the_file_and_prompts_are_planned() -> None:
    told = [Conversation(None, [Said("a b", "A B C", 2, 3), Said("c", None, 1, None)])]
    one, two = sent(list(islice(sessions.of_conversations(told, Lengths(5), Lengths(2), Pause(0.0), False, 0), 1)))
    assert (one.output_tokens, two.output_tokens) == (3, 5)
    assert (one.prompt_tokens, two.prompt_tokens) == (2 + NONCE_WORDS, 2 + NONCE_WORDS + 3 + 1)


def test_what_the_prompts_of_a_file_share_may_be_kept() -> None:
    told = [Conversation("you are kind and wise", [Said(f"question {i}", None)]) for i in range(20)]
    apart, kept = (
        sent(list(islice(sessions.of_conversations(told, Lengths(5), Lengths(1), Pause(0.0), keep, 0), 20)))
        for keep in (False, True)
    )
    assert shared_share(apart) == 0.0
    assert shared_share(kept) == pytest.approx((4 + 5 + 1) / (4 + 5 + 2) * 19 / 20)


def test_a_trace_is_replayed_with_what_its_prompts_share() -> None:
    rows = [Row(0.0, 1200, 5, (1, 2, 3)), Row(0.5, 1100, 6, (1, 2, 9)), Row(0.6, 600, 2, (7, 2)), Row(0.7, 3, 4)]
    made = sent(list(sessions.of_trace(rows, 0)))
    texts = [marked(request, "run").split() for request in made]
    assert [len(text) for text in texts] == [1200, 1100, 600, NONCE_WORDS + 1]
    assert [request.output_tokens for request in made] == [5, 6, 2, 4]
    assert texts[0][: 2 * BLOCK] == texts[1][: 2 * BLOCK] and texts[0][2 * BLOCK] != texts[1][2 * BLOCK]
    assert texts[2][:NONCE_WORDS] != texts[0][:NONCE_WORDS]  # it begins with another block
    assert shared_share(made) == pytest.approx(2 * BLOCK / 2905, abs=1e-3)


def test_what_the_blocks_of_a_trace_do_not_cover_is_its_own_text() -> None:
    made = sent(list(sessions.of_trace([Row(0.0, 600, 5, (1,)), Row(0.0, 600, 5, (1,)), Row(0.0, 100, 5, (1, 2))], 0)))
    assert [len(marked(request, "run").split()) for request in made] == [600, 600, 100]
    assert shared_share(made[:2]) == pytest.approx(BLOCK / 1200, abs=2e-3)
