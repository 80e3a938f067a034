"""The chunks of an answer as arrays, against the list that they stand for; figures of runs against plain loops."""

import math
import sys
from itertools import groupby, pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofour.bench.load import gaps, metrics, slo
from twofour.bench.load.records import Chunk, Chunks, Record

ANSWERS = st.lists(st.tuples(st.sampled_from([0.0, 0.01, 0.013, 0.5]), st.integers(1, 300)), min_size=1, max_size=12)


def record(sent: float, answer: list[tuple[float, int]]) -> Record:
    at, chunks = sent, []
    for wait, tokens in answer:
        at += wait
        chunks.append(Chunk(at, tokens))
    total = sum(tokens for _, tokens in chunks)
    return Record(0, sent, sent, sent, Chunks.of(chunks), at + 0.001, 7, total, status=200)


def test_chunks_are_the_list_that_they_stand_for() -> None:
    plain = [Chunk(1.0, 3), Chunk(1.5, 1), Chunk(2.0, 255)]
    chunks = Chunks.of(plain)
    assert chunks == plain and list(chunks) == plain and chunks[1:] == plain[1:] and chunks[-1] == plain[-1]
    assert (len(chunks), chunks.total, chunks[0].tokens) == (3, 259, 3)
    assert chunks != plain[:2] and chunks != 3 and not Chunks() and Chunks().total == 0
    assert chunks.plain(0.5) == [[0.5, 3], [1.0, 1], [1.5, 255]]


def test_times_without_tokens_are_no_chunks() -> None:
    with pytest.raises(ValueError, match="do not fit"):
        Chunks([1.0, 2.0], [1])


@pytest.mark.parametrize("tokens", [255, 256, 2**40])
def test_large_counts_stay_whole(tokens: int) -> None:
    assert Chunks([1.0, 2.0], [tokens, 1]).total == tokens + 1


def test_a_chunk_takes_nine_bytes() -> None:
    chunks = Chunks.of((float(at), 1) for at in range(1000))
    assert chunks.at.nbytes + chunks.tokens.nbytes == 9000
    assert chunks.at.base is None and chunks.tokens.base is None  # nothing larger is kept alive
    assert sys.getsizeof(chunks.at) < 8000 + 200


@given(st.lists(ANSWERS, min_size=1, max_size=12))
def test_what_the_arrays_say_is_what_loops_say(answers: list[list[tuple[float, int]]]) -> None:
    records = [record(float(at), answer) for at, answer in enumerate(answers)]
    waits = [[b.at - a.at for a, b in pairwise(each.chunks)] for each in records]
    per_token = [
        gap / b.tokens
        for each in records
        for gap, b in zip([b.at - a.at for a, b in pairwise(each.chunks)], each.chunks[1:], strict=True)
        for _ in range(b.tokens)
    ]
    pool, groups = gaps.pooled(records)
    assert [group.tolist() for group in groups] == waits and pool.tolist() == [gap for each in waits for gap in each]
    for each in records:
        assert gaps.coalesced(each) == sum(len(list(same)) > 1 for _, same in groupby(c.at for c in each.chunks))
        assert metrics.tokens_within(each, 0.5, 1.5) == sum(c.tokens for c in each.chunks if 0.5 < c.at <= 1.5)
    got = metrics.latencies(records, "per chunk")
    assert (got["itl_gap"].n, got["itl_tok"].n) == (len(pool), len(per_token))
    if len(pool):
        assert got["itl_gap"].mean == pytest.approx(np.mean(pool)) and got["itl_gap"].sd == pytest.approx(np.std(pool))
        assert got["itl_tok"].mean == pytest.approx(np.mean(per_token)) and got["itl_tok"].max == max(per_token)


@given(st.lists(ANSWERS, min_size=6, max_size=12), st.integers(0, 3), st.sampled_from(["itl_p50=12ms", "itl=12ms"]))
def test_gaps_are_judged_as_loops_judge_them(answers: list[list[tuple[float, int]]], lost: int, term: str) -> None:
    records = [record(float(at), answer) for at, answer in enumerate(answers)]
    records += [Record(9, 3.0, 3.0, done_at=3.1, error="reset: gone")] * lost
    promised = slo.parse(term)
    found = slo.attain(promised, records)
    inside = metrics.in_window(records, metrics.steady_window(records))
    kept = [[b.at - a.at for a, b in pairwise(each.chunks)] for each in inside if not each.error]
    values = sorted(gap for each in kept for gap in each)
    gone = (len(inside) - len(kept)) * (math.ceil(np.mean([len(each) for each in kept])) or 1 if kept else 1)
    values += [math.inf] * gone
    percent = promised.terms[0].percent or 100
    if found.terms[0].found_s is not None:
        assert found.terms[0].found_s == values[-(-percent * len(values) // 100) - 1]
    good = [
        each.error is None and (not (own := sorted(gaps.of(each))) or own[-(-percent * len(own) // 100) - 1] <= 0.012)
        for each in inside
    ]
    assert found.good == sum(good)
