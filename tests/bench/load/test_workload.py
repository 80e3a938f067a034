import math
import random
from itertools import islice
from statistics import fmean, stdev

import pytest

from twofour.bench.load import arrivals
from twofour.bench.load.workload import NONCE_WORDS, WORDS, Lengths, lengths, marked, schedule
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


@pytest.mark.parametrize(
    ("requests", "prompt", "rate"),
    [(0, 8, None), (1, NONCE_WORDS, None), (1, 8, 0.0), (1, 8, -1.0), (1, 8, math.inf), (1, 8, math.nan)],
)
def test_an_impossible_schedule_is_refused(requests: int, prompt: int, rate: float | None) -> None:
    with pytest.raises(InputError):
        schedule(requests, Lengths(prompt), Lengths(1), 0, rate)
