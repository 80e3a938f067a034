import math
import random
from itertools import islice
from statistics import fmean, stdev

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofour.bench.load import arrivals
from twofour.bench.load.records import Message, Request
from twofour.bench.load.workload import NONCE_WORDS, WORDS, Lengths, lengths, marked, messages, schedule, shared_share
from twofour.prune.errors import InputError


def test_lengths_are_read_and_written() -> None:
    assert lengths("128") == Lengths(128)
    assert lengths("128~0.3") == Lengths(128, 0.3)
    assert [str(Lengths(5)), str(Lengths(5, 0.25))] == ["5", "5~0.25"]


@pytest.mark.parametrize("text", ["", "x", "1.5", "0", "-3", "8~x", "8~-1", "8~3", "8~nan", "8~0.1~2"])
def test_a_wrong_length_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="length"):
        lengths(text)


def test_lognormal_lengths_have_the_mean_and_sigma_asked_for() -> None:
    draw, n = random.Random(3), 20_000
    drawn = [Lengths(200, 0.4).draw(draw) for _ in range(n)]
    assert abs(fmean(drawn) - 200) < 4 * stdev(drawn) / math.sqrt(n)
    assert abs(stdev(map(math.log, drawn)) - 0.4) < 0.01


def test_a_prompt_is_as_long_as_planned_once_the_nonce_is_before_it() -> None:
    for request in schedule(200, Lengths(12, 0.8), Lengths(6, 0.8), seed=1):
        sent = marked(request, "run").split()
        assert len(sent) == request.prompt_tokens > NONCE_WORDS
        assert request.output_tokens >= 1
        assert set(sent) <= set(WORDS)


def test_the_schedule_depends_on_the_seed_alone_and_the_rate_moves_only_the_times() -> None:
    closed, again, other, timed = (
        schedule(30, Lengths(20, 0.3), Lengths(9, 0.3), seed, rate)
        for seed, rate in ((1, None), (1, None), (2, None), (1, 5.0))
    )
    assert closed == again
    assert [r.prompt for r in closed] != [r.prompt for r in other]
    assert [r.prompt for r in closed] == [r.prompt for r in timed]
    assert [r.output_tokens for r in closed] == [r.output_tokens for r in timed]
    assert {r.at_s for r in closed} == {0.0}
    assert [r.at_s for r in timed] == list(islice(arrivals.poisson(5.0, 1), 30))


def test_no_two_sent_prompts_begin_alike() -> None:
    requests = schedule(100, Lengths(8), Lengths(1), seed=1)
    prefixes = [
        tuple(marked(request, nonce).split()[:NONCE_WORDS]) for nonce in ("a", "b", "warm-up") for request in requests
    ]
    assert len(set(prefixes)) == len(prefixes)
    assert marked(requests[0], "a") == marked(requests[0], "a")


def test_a_byte_of_the_nonce_is_a_word() -> None:
    assert len(set(WORDS)) == 256


def test_a_family_begins_alike_in_one_run_and_otherwise_in_another() -> None:
    one, two = (Request(i, 0.0, "a b", 6, 1, family="f") for i in (1, 2))
    assert marked(one, "n") == marked(two, "n") != marked(one, "m")
    alone = Request(1, 0.0, "a b", 6, 1)
    assert marked(alone, "n") != marked(one, "n")
    assert marked(alone, "n") == marked(Request(7, 0.0, "a b", 6, 1, family="1"), "n")


def test_what_was_said_before_is_sent_and_the_nonce_opens_it() -> None:
    history = (Message("system", "be short"), Message("user", "hello"), Message("assistant", "yes"))
    said = messages(Request(3, 0.0, "why", 1, 1, history=history), "n")
    assert [message.role for message in said] == ["system", "user", "assistant", "user"]
    assert [message.content for message in said[1:]] == ["hello", "yes", "why"]
    opening, rest = said[0].content.split()[:NONCE_WORDS], said[0].content.split()[NONCE_WORDS:]
    assert set(opening) <= set(WORDS) and rest == ["be", "short"]
    assert marked(Request(3, 0.0, "why", 1, 1, history=history), "n").split() == [
        *opening,
        *["be", "short", "hello", "yes", "why"],
    ]


def found_by_hand(texts: list[list[str]]) -> float:
    """The longest beginning that an earlier text has, too, by comparing all pairs."""

    def alike(one: list[str], two: list[str]) -> int:
        return next((i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b), min(len(one), len(two)))

    shared = [max((alike(text, before) for before in texts[:index]), default=0) for index, text in enumerate(texts)]
    return sum(shared) / sum(map(len, texts))


@given(
    st.lists(
        st.tuples(st.sampled_from(["x", "y", None]), st.lists(st.sampled_from("ab"), min_size=1, max_size=6)),
        min_size=1,
    )
)
def test_what_a_prefix_cache_may_find(asked: list[tuple[str | None, list[str]]]) -> None:
    requests = [Request(i, 0.0, " ".join(text), 1, 1, family=family) for i, (family, text) in enumerate(asked)]
    assert shared_share(requests) == pytest.approx(found_by_hand([marked(request, "").split() for request in requests]))


def test_requests_of_no_family_share_nothing() -> None:
    assert shared_share(schedule(50, Lengths(8), Lengths(1), 0)) == shared_share([]) == 0.0


@pytest.mark.parametrize(
    ("requests", "prompt", "rate"),
    [(0, 8, None), (1, NONCE_WORDS, None), (1, 8, 0.0), (1, 8, -1.0), (1, 8, math.inf), (1, 8, math.nan)],
)
def test_an_impossible_schedule_is_refused(requests: int, prompt: int, rate: float | None) -> None:
    with pytest.raises(InputError):
        schedule(requests, Lengths(prompt), Lengths(1), 0, rate)
