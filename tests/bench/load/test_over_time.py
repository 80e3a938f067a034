"""A run cut into bins: what went in comes out, whatever the bins."""

import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofour.bench.load import metrics, over_time
from twofour.bench.load.records import Chunk, Chunks, Record
from twofour.bench.load.run import Run
from twofour.bench.load.service import Service
from twofour.bench.load.workload import Schedule

STARTED = 1000.0


def run_of(records: list[Record]) -> Run:
    summary = metrics.summarise(records, STARTED)
    return Run(
        Service("u", "m"), Schedule([], 1, {}), "n", datetime(2026, 1, 1, tzinfo=UTC), STARTED, records, summary, []
    )


def request(sent: float, first: float, gap: float, tokens: int) -> Record:
    sent += STARTED
    chunks = [Chunk(sent + first + gap * number, 1) for number in range(tokens)]
    return Record(0, sent, sent, sent, Chunks.of(chunks), chunks[-1].at, 5, tokens)


def test_two_requests_by_hand() -> None:
    # Under way from 0.0 to 0.5 and from 0.35 to 1.05: bins of 0.1 s.
    run = run_of([request(0.0, 0.1, 0.1, 5), request(0.35, 0.1, 0.1, 7)])
    assert over_time.edges(run) == pytest.approx([number / 10 for number in range(12)])
    assert [value for _, value in over_time.under_way(run)] == pytest.approx([1, 1, 1, 1.5, 2, 1, 1, 1, 1, 1, 0.5])
    sent = over_time.sent_per_s(run)
    assert [at for at, value in sent if value] == pytest.approx([0.0, 0.3])
    assert [value for _, value in sent if value] == pytest.approx([10, 10])
    assert sum(value for _, value in over_time.ended_per_s(run)) == pytest.approx(20)
    assert sum(value for _, value in over_time.tokens_per_s(run)) * 0.1 == pytest.approx(12)
    assert over_time.first_token_s(run) == [(0.0, pytest.approx(0.1)), (pytest.approx(0.3), pytest.approx(0.1))]


def test_a_failed_request_is_offered_and_under_way_but_brings_nothing() -> None:
    lost = Record(0, STARTED, STARTED, done_at=STARTED + 2, error="reset: gone")
    run = run_of([lost])
    assert sum(value for _, value in over_time.under_way(run)) == pytest.approx(len(over_time.edges(run)) - 1)
    assert any(value for _, value in over_time.due_per_s(run))
    assert not any(value for _, value in (*over_time.ended_per_s(run), *over_time.tokens_per_s(run)))


def test_nothing_sent_has_no_lines() -> None:
    run = run_of([])
    for series in (over_time.under_way, over_time.sent_per_s, over_time.tokens_per_s, over_time.first_token_s):
        assert series(run) == []


@given(st.integers(0, 2**32), st.integers(1, 60), st.floats(0.01, 3000))
def test_bins_lose_nothing(seed: int, count: int, spread: float) -> None:
    draw = random.Random(seed)
    records = [
        request(draw.uniform(0, spread), draw.uniform(0.001, spread), draw.uniform(0, 0.1), draw.randint(1, 9))
        for _ in range(count)
    ]
    run = run_of(records)
    edges = over_time.edges(run)
    assert 1 <= len(edges) - 1 <= over_time.BINS + 1
    width = edges[1] - edges[0]
    held = sum(record.done_at - record.sent_at for record in records if record.done_at and record.sent_at)
    assert sum(value for _, value in over_time.under_way(run)) * width == pytest.approx(held, rel=1e-6)
    assert sum(value for _, value in over_time.ended_per_s(run)) * width == pytest.approx(count)
    tokens = sum(record.output_tokens or 0 for record in records)
    assert sum(value for _, value in over_time.tokens_per_s(run)) * width == pytest.approx(tokens)


def test_samples_are_means_of_their_bins_and_gaps_stay() -> None:
    run = run_of([request(0.0, 1.0, 1.0, 8)])  # 8 s: bins of 0.1 s
    samples = [(0.01, 2.0), (0.05, 4.0), (3.02, 1.0), (9.5, 7.0), (-1.0, 7.0)]
    assert over_time.binned(run, samples) == [(0.0, 3.0), (pytest.approx(3.0), 1.0)]
