import json
import math
import random

import pytest

from twofour.bench.load import metrics
from twofour.bench.load.metrics import summarise
from twofour.bench.load.records import Chunk, Chunks, Record


def served(
    index: int = 0,
    sent: float = 1.0,
    first: float = 0.1,
    gap: float = 0.01,
    sizes: tuple[int, ...] = (1, 1, 1, 1),
    output: int | None = -1,
) -> Record:
    """A request that ended well: its first chunk `first` after it was sent, then `gap` per token."""
    chunks = [Chunk(sent + first, sizes[0])]
    for size in sizes[1:]:
        chunks.append(Chunk(chunks[-1].at + gap * size, size))
    return Record(
        index,
        scheduled_at=sent - 0.02,
        sent_at=sent,
        headers_at=sent + 0.05,
        chunks=Chunks.of(chunks),
        done_at=chunks[-1].at + 0.001,
        prompt_tokens=10,
        output_tokens=sum(sizes) if output == -1 else output,
        status=200,
    )


def broken(sent: float = 1.0, error: str = "reset: gone") -> Record:
    return Record(0, sent, sent_at=sent, done_at=sent + 0.3, error=error)


def test_one_request_by_hand() -> None:
    # scheduled 0.98, sent 1.00, headers 1.05, tokens 3 at 1.10, 1 at 1.12, 4 at 1.20, done 1.25
    record = Record(0, 0.98, 1.0, 1.05, Chunks.of([(1.10, 3), (1.12, 1), (1.20, 4)]), 1.25, 10, 8)
    got = summarise([record], started_at=0.9)
    expected = {
        "ttft": 0.10,
        "ttft_sched": 0.12,
        "first_byte": 0.05,
        "itl_gap": (0.02 + 0.08) / 2,
        "itl_tok": (0.02 * 1 + 0.02 * 4) / 5,
        "tpot": 0.10 / (8 - 3),
        "tpot_vllm": 0.10 / (8 - 1),
        "tpot_incl": 0.20 / 8,
        "e2e": 0.20,
    }
    assert {name: getattr(got, name).mean for name in expected} == pytest.approx(expected)
    assert got.window_s == pytest.approx((0.1, 0.35))
    assert got.output_tokens_per_s == pytest.approx(8 / 0.25)
    assert got.total_tokens_per_s == pytest.approx(18 / 0.25)
    assert got.requests_per_s == pytest.approx(1 / 0.25)
    assert got.token_counts == "per chunk"
    assert got.duration_s == pytest.approx(0.25)
    assert got.tokens_per_chunk == pytest.approx(8 / 3)


def test_the_definitions_agree_on_one_token_per_chunk_and_differ_as_known_on_four() -> None:
    ones = summarise([served(sizes=(1,) * 64)], 0.0)
    assert ones.itl_gap.mean == pytest.approx(0.01)
    assert ones.itl_tok.mean == ones.tpot.mean == ones.tpot_vllm.mean == pytest.approx(0.01)
    fours = summarise([served(sizes=(4,) * 16)], 0.0)
    assert fours.itl_gap.mean == pytest.approx(0.04)  # what counting chunks would call a token
    assert fours.itl_tok.mean == fours.tpot.mean == pytest.approx(0.01)
    assert fours.tpot_vllm.mean == pytest.approx(0.01 * 60 / 63)


def test_the_gaps_of_one_request_have_no_percentiles() -> None:
    alone = summarise([served(sizes=(1,) * 301)], 0.0)
    assert (alone.itl_gap.n, alone.itl_gap.independent) == (300, 1)
    assert alone.itl_gap.mean == pytest.approx(0.01)
    assert {alone.itl_gap.p50, alone.itl_gap.p99, alone.itl_tok.p50, alone.itl_tok.p99} == {None}
    draw = random.Random(1)
    many = [served(index, sizes=tuple(draw.choices((1, 2, 3), k=31))) for index in range(16)]
    got = summarise(many, 0.0)
    assert got.itl_gap.n == 16 * 30 and got.itl_gap.p95 is not None
    assert got.itl_tok.n > got.itl_tok.independent == got.itl_gap.independent
    slow = summarise([served(index, gap=0.01 * (1 + index), sizes=(1,) * 31) for index in range(16)], 0.0)
    assert (slow.itl_gap.n, slow.itl_gap.independent, slow.itl_gap.p90) == (480, 16, None)


def test_coalesced_chunks_leave_the_means_and_show_in_their_share() -> None:
    plain = served(sizes=(1,) * 9)
    late = [chunk.at for chunk in plain.chunks]
    late[3] = late[4]  # two chunks in one read
    together = served(sizes=(1,) * 9)
    together.chunks = Chunks.of((at, 1) for at in late)
    first, second = summarise([plain], 0.0), summarise([together], 0.0)
    assert second.itl_gap.mean == pytest.approx(first.itl_gap.mean)
    assert second.tpot.mean == first.tpot.mean
    assert (first.coalesced_reads, second.coalesced_reads) == (0.0, 1 / 8)


def test_with_usage_at_the_end_the_total_is_spread_over_the_chunks() -> None:
    # Four chunks that count as one token each and held two: 0.03 s for the six tokens after the first chunk.
    got = summarise([served(output=8)], 0.0)
    assert got.token_counts == "per request"
    assert got.itl_tok.n == 0
    assert got.tpot.mean == pytest.approx(0.03 / 6)
    assert got.output_tokens_per_s == pytest.approx(8 / 0.131)
    assert got.tokens_per_chunk == 2


def test_without_usage_what_needs_a_token_count_is_unknown() -> None:
    got = summarise([served(output=None), served(1)], 0.0)
    assert got.token_counts == "none"
    assert (got.itl_tok.n, got.output_tokens, got.tokens_per_chunk) == (0, None, None)
    assert (got.output_tokens_per_s, got.total_tokens_per_s) == (None, None)
    assert got.ttft.n == got.e2e.n == 2
    assert got.requests_per_s is not None


def test_one_token_has_no_time_per_output_token() -> None:
    got = summarise([served(sizes=(1,)), served(sizes=(4,))], 0.0)
    assert (got.tpot.n, got.tpot_vllm.n, got.tpot_incl.n) == (0, 1, 2)


def test_throughput_counts_what_arrived_in_the_window() -> None:
    # Tokens at 1.1, 1.11, 1.12, 1.13 and at 2.1 to 2.13; ends at 1.131 and 2.131; window (1.105, 2.115].
    got = summarise([served(), served(1, sent=2.0)], 0.0, window=(1.105, 2.115))
    assert got.output_tokens_per_s == pytest.approx((3 + 2) / 1.01)
    assert got.total_tokens_per_s == pytest.approx((3 + 2 + 10) / 1.01)
    assert got.requests_per_s == pytest.approx(1 / 1.01)
    assert (got.requests, got.measured, got.ttft.n) == (2, 1, 1)


def test_the_window_of_a_closed_loop_leaves_out_ramp_and_drain() -> None:
    # Three workers that start at 0, 1 and 2 and send five requests of 3 s each: all busy from 2 to 15.
    records = [
        Record(0, sent, sent_at=sent, chunks=Chunks.of([(sent + 1, 1)]), done_at=sent + 3, output_tokens=1)
        for worker in range(3)
        for sent in (worker + 3.0 * turn for turn in range(5))
    ]
    assert metrics.steady_window(records) == (2.0, 15.0)
    assert metrics.whole_window(records) == (0.0, 17.0)


def test_the_window_by_brute_force_on_random_runs() -> None:
    draw = random.Random(1)
    for _ in range(50):
        spans = [(s := draw.randrange(60), s + draw.randrange(1, 20)) for _ in range(draw.randrange(1, 12))]
        records = [Record(0, a, sent_at=float(a), done_at=float(b), error="x") for a, b in spans]
        start, end = min(a for a, _ in spans), max(b for _, b in spans)
        levels = [sum(a <= t < b for a, b in spans) for t in range(start, end)]  # in each second
        median = max(1, sorted(levels)[(len(levels) + 1) // 2 - 1])
        busy = [start + i for i, level in enumerate(levels) if level >= median]
        assert metrics.steady_window(records) == (busy[0], busy[-1] + 1)


def test_an_idle_server_is_measured_whole() -> None:
    assert metrics.steady_window([served(0, 1.0), served(1, 5.0)]) == pytest.approx((1.0, 5.131))


def test_a_run_in_which_all_is_refused_at_once_has_no_window() -> None:
    records = [Record(0, at, sent_at=at, done_at=at, error="HTTP 400: too long") for at in (1.0, 2.0)]
    assert metrics.steady_window(records) is None


def test_failures_are_counted_by_kind_and_never_lower_a_percentile() -> None:
    good = [served(i, first=0.1 + i / 1000) for i in range(90)]
    bad = [broken(error="timeout: a"), broken(error="timeout: b"), *[broken() for _ in range(8)]]
    got = summarise(good + bad, 0.0, window=(0.0, 9.0))
    assert (got.completed, got.failed, got.errors) == (90, 10, {"timeout": 2, "reset": 8})
    assert (got.ttft.n, got.ttft.failed, got.measured) == (90, 10, 100)
    assert got.ttft.p95 == pytest.approx(0.1 + 0.95 * 89 / 1000)
    assert got.ttft.adjusted_p90 == pytest.approx(0.189)
    assert got.ttft.adjusted_p95 == math.inf
    plain = json.loads(json.dumps(got.as_dict(), allow_nan=False))
    assert plain["ttft"]["adjusted_p95"] is None
    assert plain["ttft"]["p95"] == got.ttft.p95


@pytest.mark.parametrize("records", [[], [Record(0, 1.0, error="connect: refused")], [broken()]])
def test_a_run_without_a_result_is_unknown_throughout(records: list[Record]) -> None:
    got = summarise(records, 0.0)
    assert (got.requests, got.completed) == (len(records), 0)
    assert got.ttft.mean is None and got.output_tokens is None and got.tokens_per_chunk is None
    assert not got.output_tokens_per_s
    json.dumps(got.as_dict(), allow_nan=False)
