import math
from dataclasses import replace
from itertools import islice, pairwise
from typing import Any

import pytest

from twofour.bench.load import arrivals
from twofour.bench.load.workload import Lengths, Limits, marked, synthetic
from twofour.bench.traffic import traffic
from twofour.bench.traffic.conversations import Conversation, Conversations, Turn
from twofour.bench.traffic.lengths import Pause, tokens
from twofour.bench.traffic.traces import Row, Trace
from twofour.bench.traffic.traffic import Rate, Traffic
from twofour.prune.errors import InputError

TRACE = Trace("azure.csv", [Row(0.0, 900, 5), Row(1.0, 30, 6), Row(4.0, 50, 7)], 2)
TALK = Conversations("talk.json", [Conversation(None, [Turn("a", "A"), Turn("b", None)])], 0)


@pytest.mark.parametrize(("concurrency", "rate"), [(3, None), (None, 4.0)])
def test_plain_traffic_is_the_plain_schedule(concurrency: int | None, rate: float | None) -> None:
    lengths = Lengths(20, 0.4), Lengths(9, 0.4)
    made = Traffic(30, concurrency, Rate(rate) if rate else None, *lengths, seed=5).schedule()
    assert made == synthetic(30, *lengths, 5, concurrency=concurrency, rate=rate)


def test_the_rate_and_its_process_move_the_times_and_nothing_else() -> None:
    plain = Traffic(40, rate=Rate(5.0), prompt_tokens=Lengths(9, 0.4))
    others = [Rate(9.0), Rate(5.0, shape=None), Rate(5.0, shape=0.3), Rate(1.0, 9.0)]
    made = [replace(plain, rate=rate).schedule().requests for rate in (plain.rate, *others)]
    assert len({tuple(request.prompt for request in requests) for requests in made}) == 1
    assert len({tuple(request.at_s for request in requests) for requests in made}) == len(made)
    assert [request.at_s for request in made[2]] == pytest.approx([i / 5 for i in range(1, 41)])


def test_a_ramp_lasts_as_long_as_the_load() -> None:
    by_number = Traffic(550, rate=Rate(1.0, 10.0, None), prompt_tokens=Lengths(5)).schedule().requests
    assert by_number[-1].at_s == pytest.approx(100.0)
    by_time = Traffic(
        None, rate=Rate(1.0, 10.0, None), limits=Limits(duration_s=100.0), prompt_tokens=Lengths(5)
    ).schedule()
    assert [request.at_s for request in by_time.requests] == pytest.approx([r.at_s for r in by_number[:-1]])
    gaps = [after.at_s - before.at_s for before, after in pairwise(by_number)]
    assert gaps[0] > 5 * gaps[-1] and gaps == sorted(gaps, reverse=True)


def test_time_ends_an_open_loop() -> None:
    made = Traffic(None, rate=Rate(10.0), limits=Limits(duration_s=30.0)).schedule()
    times = [request.at_s for request in made.requests]
    assert times == [at_s for at_s in islice(arrivals.poisson(10.0, 0), 500) if at_s < 30.0]
    assert len(Traffic(50, rate=Rate(10.0), limits=Limits(duration_s=30.0)).schedule().requests) == 50
    assert made.limits.duration_s == 30.0 and made.made_of["requests"] == len(times)


def test_a_closed_loop_that_time_ends_has_requests_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traffic, "_MOST_REQUESTS", 200)
    monkeypatch.setattr(traffic, "_MOST_TOKENS", 10_000)
    timed = Limits(duration_s=5.0)
    assert len(Traffic(None, 4, prompt_tokens=Lengths(5), limits=timed).schedule().requests) == 200
    assert len(Traffic(None, 4, prompt_tokens=Lengths(1000), limits=timed).schedule().requests) == 10
    assert len(Traffic(None, 4, prompt_tokens=Lengths(100_000), limits=timed).schedule().requests) == 1
    assert len(Traffic(7, 4, limits=timed).schedule().requests) == 7


def test_a_trace_gives_times_and_lengths() -> None:
    made = Traffic(None, trace=TRACE).schedule()
    assert [(r.at_s, r.prompt_tokens, r.output_tokens) for r in made.requests] == [
        (0.0, 900, 5),
        (1.0, 30, 6),
        (4.0, 50, 7),
    ]
    assert made.concurrency is None
    assert made.made_of.items() >= {"trace": "azure.csv", "left_out": 2, "prompt_tokens": "as in azure.csv"}.items()
    fast = Traffic(None, trace=TRACE, speed_up=4.0, limits=Limits(duration_s=0.9)).schedule()
    assert [r.at_s for r in fast.requests] == [0.0, 0.25] and fast.made_of["speed_up"] == 4.0
    assert len(Traffic(2, trace=TRACE).schedule().requests) == 2
    closed = Traffic(None, 2, trace=TRACE).schedule()
    assert [r.at_s for r in closed.requests] == [0.0] * 3 and closed.requests[0].prompt_tokens == 900


def test_lengths_from_a_file_are_drawn_together() -> None:
    made = Traffic(3000, 1, pairs=TRACE).schedule().requests
    seen = [(request.prompt_tokens, request.output_tokens) for request in made]
    assert set(seen) == {(900, 5), (30, 6), (50, 7)}
    for pair in set(seen):
        assert abs(seen.count(pair) / 3000 - 1 / 3) < 4 * math.sqrt(2 / 9 / 3000)


def test_requests_are_turns_and_arrivals_are_sessions() -> None:
    made = Traffic(10, rate=Rate(2.0), turns=Lengths(3), think=Pause(1.0), prompt_tokens=Lengths(9)).schedule()
    assert [request.after for request in made.requests] == [None, 0, 1, None, 3, 4, None, 6, 7, None]
    firsts = [request.at_s for request in made.requests if request.after is None]
    assert firsts == list(islice(arrivals.poisson(2.0, 0), 4))
    assert made.made_of["turns"] == "3" and made.made_of["think_s"] == "1"


def test_texts_of_a_file() -> None:
    made = Traffic(5, 2, conversations=TALK, turns=Lengths(2), output_tokens=Lengths(4)).schedule()
    assert [request.prompt for request in made.requests] == ["a", "b", "a", "b", "a"]
    assert marked(made.requests[1], "n").split()[4:] == ["a", "A", "b"]
    assert (
        made.made_of.items()
        >= {"prompts": "talk.json", "prompt_tokens": "as in talk.json", "output_tokens": "4"}.items()
    )


def test_where_lengths_of_answers_come_from() -> None:
    counted = Conversations("said", [Conversation(None, [Turn("a", "A", 1, 7)])], 0)
    made = Traffic(2, 2, conversations=counted, output_tokens=Lengths(4)).schedule()
    assert [request.output_tokens for request in made.requests] == [7, 7]
    assert made.made_of["output_tokens"] == "as in said or 4"


def test_only_what_was_asked_for_is_said() -> None:
    plain = Traffic(5, 2).schedule().made_of
    assert set(plain) == {"requests", "concurrency", "rate", "prompt_tokens", "output_tokens", "seed"}
    special = Traffic(5, rate=Rate(1.0, 2.0, 0.5), shared_prefix=0.5, prefixes=3).schedule().made_of
    assert {name: special[name] for name in set(special) - set(plain)} == {
        "rate_to": 2.0,
        "arrivals": "gamma:0.5",
        "shared_prefix": 0.5,
        "prefixes": 3,
    }


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"requests": 0, "concurrency": 1}, "requests measure nothing"),
        ({"concurrency": 0}, "at a time"),
        ({}, "give one of them"),
        ({"concurrency": 1, "rate": Rate(1.0)}, "give one of them"),
        ({"rate": Rate(1.0), "trace": TRACE}, "give one of them"),
        ({"trace": Trace("x", [Row(None, 9, 9)], 0)}, "give one of them"),
        ({"requests": None, "concurrency": 1}, "nothing ends"),
        ({"concurrency": 1, "prompt_tokens": Lengths(4)}, "too short"),
        ({"concurrency": 1, "prompt_tokens": tokens("0.5x100+0.5x4")}, "too short"),
        ({"concurrency": 1, "shared_prefix": 1.0}, "share below 1"),
        ({"concurrency": 1, "shared_prefix": -0.1}, "share below 1"),
        ({"concurrency": 1, "prefixes": 0}, "at least 1"),
        ({"requests": None, "trace": TRACE, "speed_up": 0.0}, "speed-up"),
        ({"requests": None, "trace": TRACE, "speed_up": math.nan}, "speed-up"),
        ({"requests": None, "rate": Rate(0.01), "limits": Limits(duration_s=0.01)}, "no request comes"),
    ],
)
def test_impossible_traffic_is_refused(wrong: dict[str, Any], why: str) -> None:
    with pytest.raises(InputError, match=why):
        Traffic(**wrong).schedule()


@pytest.mark.parametrize("wrong", [(0.0,), (-1.0,), (math.inf,), (math.nan,), (1.0, 0.0), (1.0, math.inf), (-1.0, 2.0)])
def test_an_impossible_rate_is_refused(wrong: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="rate"):
        Rate(*wrong)


@pytest.mark.parametrize("shape", [0.0, -1.0, math.inf, math.nan])
def test_an_impossible_shape_is_refused(shape: float) -> None:
    with pytest.raises(InputError, match="burstiness"):
        Rate(1.0, shape=shape)
