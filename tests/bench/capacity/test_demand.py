"""What is to be served: the same requests at any rate; the busiest stretch of a trace."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from plans import traffic

from twofour.bench.capacity.demand import busiest, demand
from twofour.bench.load.workload import Lengths
from twofour.bench.traffic.conversations import Conversation, Conversations, Turn
from twofour.bench.traffic.traces import Row, Trace
from twofour.bench.traffic.traffic import Rate, Traffic
from twofour.prune.errors import InputError

GAPS = st.lists(st.floats(0, 10), min_size=1, max_size=30)


def trace(*times: float) -> Traffic:
    return Traffic(requests=None, trace=Trace("t.csv", [Row(at, 20 + n, 5) for n, at in enumerate(times)], 0))


def test_another_rate_moves_the_same_requests() -> None:
    asked = demand(traffic(4.0))
    slow, quick = asked.schedule(2.0, 50, 1).requests, asked.schedule(8.0, 50, 1).requests
    assert [each.at_s for each in slow] == pytest.approx([4 * each.at_s for each in quick])
    assert {each.prompt_tokens for each in slow} == {64} and len(slow) == len(quick) == 50
    plain = Traffic(requests=50, rate=Rate(8.0), prompt_tokens=Lengths(64), output_tokens=Lengths(16), seed=1)
    assert [each.at_s for each in plain.schedule().requests] == pytest.approx([each.at_s for each in quick])


def test_texts_of_unknown_length_are_refused() -> None:
    said = Conversations("p.json", [Conversation(None, [Turn("how far is it?", None)])], 0)
    with pytest.raises(InputError, match="give --tokenizer"):
        demand(Traffic(requests=None, rate=Rate(1.0), conversations=said))
    counted = Conversations("p.json", [Conversation(None, [Turn("how far is it?", None, 5)])], 0)
    assert demand(Traffic(requests=None, rate=Rate(1.0), conversations=counted)).lengths(20, 0)[0] == 9


def test_lengths_and_turns_are_those_of_the_requests() -> None:
    talk = Traffic(requests=None, rate=Rate(1.0), prompt_tokens=Lengths(10), output_tokens=Lengths(5), turns=Lengths(2))
    asked = demand(talk)
    # A second prompt holds the first, its answer and 10 tokens of its own.
    assert asked.lengths(20, 0) == ((10 + 25) / 2, 5) and asked.turns(20, 0) == 2
    assert asked.longest(20, 0) == 30
    assert max(each.prompt_tokens or 0 for each in asked.schedule(1.0, 20, 0).requests) == 25
    assert asked.shares and not demand(traffic(1.0)).shares


@given(gaps=GAPS, most=st.integers(2, 12))
def test_the_busiest_stretch_is_the_shortest(gaps: list[float], most: int) -> None:
    times = [sum(gaps[:n]) for n in range(len(gaps) + 1)]
    rows = [Row(at, 10, 10) for at in times]
    found = busiest(rows, most)
    spans = [times[end - 1] - times[end - most] for end in range(most, len(times) + 1)] or [times[-1]]
    assert len(found) == min(most, len(rows))
    assert (found[-1].at_s or 0) - (found[0].at_s or 0) == min(spans)


def test_a_trace_has_its_own_peak_and_mean() -> None:
    asked = demand(trace(0.0, 1.0, 4.0))
    assert asked.peak == asked.mean == 0.5
    moved = asked.schedule(1.0, 1000, 7).requests
    assert [each.at_s for each in moved] == [0.0, 0.5, 2.0] and [each.prompt_tokens for each in moved] == [20, 21, 22]


def test_a_trace_that_is_busier_on_average_than_in_its_stretch(monkeypatch: pytest.MonkeyPatch) -> None:
    # A stretch of so many rows counts one gap fewer than rows, and all of them came together.
    monkeypatch.setattr("twofour.bench.capacity.demand.MOST", 2)
    monkeypatch.setattr("twofour.bench.capacity.demand._rate", lambda rows: 1.0 if len(rows) == 2 else 1.5)
    assert demand(trace(0.0, 1.0, 2.0)).mean == 1.0


def test_requests_that_are_alone_are_apart_though_a_trace_has_them_together() -> None:
    found = demand(trace(0.0, 0.0, 0.0, 4.0)).apart(0.1, 4, 0).requests
    assert [each.at_s for each in found] == [0.0, 10.0, 20.0, 30.0]


def test_a_rate_may_be_as_small_as_it_likes() -> None:
    asked = demand(traffic(1e-6))
    assert asked.schedule(1e-6, 1000, 0).requests[-1].at_s > 30 * 86400


@pytest.mark.parametrize(
    ("asked", "mean", "why"),
    [
        (Traffic(requests=9, concurrency=2), None, "a plan is for arrivals"),
        (trace(3.0, 3.0), None, "came at one time"),
        (trace(1.0), None, "came at one time"),
        (Traffic(requests=None, rate=Rate(1.0, 5.0)), None, "give --rate 5"),
        (traffic(4.0), 5.0, "up to the peak"),
        (traffic(4.0), 0.0, "up to the peak"),
        (traffic(4.0), float("nan"), "up to the peak"),
    ],
)
def test_what_cannot_be_planned_for(asked: Traffic, mean: float | None, why: str) -> None:
    with pytest.raises(InputError, match=why):
        demand(asked, mean)
