"""What is promised: read, judged by hand, and against a count by the definition."""

import json
import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofour.bench.load import slo
from twofour.bench.load.metrics import in_window, steady_window
from twofour.bench.load.records import Chunk, Chunks, Record
from twofour.bench.load.slo import Slo, Term, attain, is_good, parse
from twofour.prune.errors import InputError


def record(scheduled: float, first: float = 0.1, gaps: tuple[float, ...] = (0.01, 0.01), late: float = 0.0) -> Record:
    """The first token `first` after it was scheduled, sent `late` after that; one token in each chunk."""
    at = scheduled + first
    chunks = [Chunk(at, 1)]
    for gap in gaps:
        chunks.append(Chunk(chunks[-1].at + gap, 1))
    return Record(0, scheduled, scheduled + late, at, Chunks.of(chunks), chunks[-1].at, 10, len(chunks))


def failed(scheduled: float) -> Record:
    return Record(0, scheduled, scheduled, done_at=scheduled + 0.1, error="reset: gone")


def one_after_another(firsts: list[float]) -> list[Record]:
    """A second between any two, with one request under way from the first to the last, so that all count."""
    return [record(float(at), first) for at, first in enumerate(firsts)]


def test_what_is_written_is_read() -> None:
    found = parse("ttft_p95=500ms, tpot_p95=50ms,e2e=2s")
    assert found == Slo((Term("ttft", 95, 0.5), Term("tpot", 95, 0.05), Term("e2e", None, 2.0)))
    assert str(found) == "ttft_p95=500ms,tpot_p95=50ms,e2e=2000ms" and parse(str(found)) == found
    assert (found.fewest, parse("e2e=1s").fewest, parse("itl_p99=20ms").fewest) == (59, 1, 299)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        *((text, "is no term of an SLO") for text in ("", "ttft", "ttft=500", "ttft<5ms", "ttft=-1s", "ttft=1s,")),
        *((text, "bounds nothing that is measured") for text in ("cost=1s", "ttft_p42=1s", "ttft_p95=0ms")),
        ("ttft=1s,ttft=2s", "bounds something twice"),
    ],
)
def test_what_is_no_slo_is_refused(text: str, why: str) -> None:
    with pytest.raises(InputError, match=why):
        parse(text)


def test_by_hand() -> None:
    asked = parse("ttft_p90=200ms,e2e=1s")
    records = one_after_another([0.1] * 57 + [0.3] * 3)
    found = attain(asked, records)
    assert (found.requests, found.good, found.attained) == (60, 57, True)
    assert [(term.term, term.kept) for term in found.terms] == [("ttft_p90", True), ("e2e", True)]
    assert [term.found_s for term in found.terms] == pytest.approx([0.1, 0.32])
    assert found.good_share and found.good_share[0] == pytest.approx(0.95)
    assert found.goodput_per_s == pytest.approx(57 / (59 + 0.32))
    slower = attain(parse("ttft_p99=200ms,e2e_p50=1s"), records)
    assert [term.found_s is None for term in slower.terms] == [True, False] and slower.attained is None


def test_a_wait_counts_from_the_schedule_though_the_client_be_late() -> None:
    late = record(1.0, first=0.3, late=0.25)
    assert is_good(parse("ttft=350ms,e2e=350ms"), late)
    assert not is_good(parse("ttft=250ms"), late) and not is_good(parse("e2e=300ms"), late)


def test_of_its_own_gaps_a_request_keeps_as_many_as_the_term_says() -> None:
    stalled = record(0.0, gaps=(*[0.01] * 19, 0.5))
    assert is_good(parse("itl_p95=20ms"), stalled) and not is_good(parse("itl=20ms"), stalled)
    twice = record(0.0, gaps=(*[0.01] * 18, 0.5, 0.5))
    assert not is_good(parse("itl_p95=20ms"), twice)


def test_what_failed_misses_every_term() -> None:
    records = one_after_another([0.1] * 60)
    few = [*records[:-3], *map(failed, (57.0, 58.0, 59.0))]
    assert attain(parse("ttft_p95=200ms"), few).attained is True
    found = attain(parse("ttft_p95=200ms,itl_p95=20ms"), [failed(10.0), *few[:10], *few[11:]])
    assert [term.found_s for term in found.terms] == [math.inf, math.inf] and found.attained is False
    assert found.good == 56 and json.dumps(found.as_dict(), allow_nan=False)
    assert found.as_dict()["terms"][0] | {"limit_s": 0} == {
        "term": "ttft_p95",
        "limit_s": 0,
        "found_s": None,
        "kept": False,
    }


def test_without_the_servers_count_times_per_token_are_not_known() -> None:
    records = [replace(each, output_tokens=None) for each in one_after_another([0.1] * 60)]
    found = attain(parse("ttft_p95=200ms,tpot=20ms"), records)
    assert [term.kept for term in found.terms] == [True, None]
    assert (found.attained, found.good, found.good_share, found.goodput_per_s) == (None, None, None, None)
    assert attain(parse("itl=20ms"), records).good == 60


def test_of_nothing_nothing_is_known() -> None:
    found = attain(parse("e2e=1s"), [])
    assert (found.attained, found.requests, found.good_share, found.goodput_per_s) == (None, 0, None, None)


TIMES = st.floats(0.001, 2.0)


@given(st.lists(st.tuples(TIMES, st.booleans()), min_size=1, max_size=90), TIMES, st.sampled_from([None, 50, 90, 95]))
def test_against_a_count_by_the_definition(
    waits: list[tuple[float, bool]], limit_s: float, percent: int | None
) -> None:
    records = [record(3.0 * at, wait) if well else failed(3.0 * at) for at, (wait, well) in enumerate(waits)]
    found = attain(Slo((Term("ttft", percent, limit_s),)), records)
    inside = in_window(records, steady_window(records))
    within = [each for each in inside if not each.error and each.chunks[0].at - each.scheduled_at <= limit_s]
    assert (found.requests, found.good) == (len(inside), len(within))
    share = len(within) / len(inside)
    assert found.good_share and found.good_share[0] == share and found.good_share[1] <= share <= found.good_share[2]
    if found.attained is not None:  # a percentile is kept where so many are within the limit
        assert found.attained == (100 * len(within) >= (percent or 100) * len(inside))
    assert (found.attained is None) == (len(inside) < slo.Term("ttft", percent, limit_s).fewest)
