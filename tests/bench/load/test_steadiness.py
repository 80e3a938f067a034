import random
from itertools import islice

import pytest

from twofour.bench.load import arrivals
from twofour.bench.load.records import Chunk, Chunks, Record
from twofour.bench.load.steadiness import FEWEST, latency_drift, rate_shortfall


def answered(sent: float, begun: float, tokens: int, token_s: float) -> Record:
    chunks = [Chunk(begun + token_s * (1 + token), 1) for token in range(tokens)]
    return Record(0, sent, sent, begun, Chunks.of(chunks), chunks[-1].at, 10, tokens)


def queue(n: int, load: float, seed: int, token_s: float = 0.01) -> list[Record]:
    """One answer at a time, at `load` times what the server can do; answers of 4 to 40 tokens."""
    draw, free, records = random.Random(seed), 0.0, []
    for at in islice(arrivals.poisson(load / (22 * token_s), seed), n):
        records.append(answered(at, max(at, free), draw.randint(4, 40), token_s))
        free = records[-1].chunks[-1].at
    return records


def loop(n: int, slower: float, seed: int = 0) -> list[Record]:
    """Two at a time, whose tokens come ever slower: in the end by that factor."""
    draw, free, records = random.Random(seed), [0.0, 0.05], []
    for index in range(n):
        at = min(free)
        token_s = 0.01 * (1 + (slower - 1) * index / n) * draw.uniform(0.9, 1.1)
        records.append(answered(at, at, draw.randint(4, 40), token_s))
        free[free.index(at)] = records[-1].chunks[-1].at
    return records


@pytest.mark.parametrize("seed", range(5))
def test_twice_what_a_server_can_do_is_a_shortfall_of_half(seed: int) -> None:
    shortfall, drift = rate_shortfall(queue(64, 2.0, seed)), latency_drift(queue(64, 2.0, seed))
    assert shortfall and drift
    assert 0.3 < shortfall < 0.7
    assert drift > 0.5
    exact = rate_shortfall([answered(float(i), 2.0 * i, 1, 2.0) for i in range(64)])
    assert exact == pytest.approx(0.5)  # one a second comes, every other second one is answered


def test_a_server_that_keeps_up_falls_short_of_nothing() -> None:
    for n in (16, 64):
        found = [rate_shortfall(queue(n, 0.5, seed)) or 0.0 for seed in range(100)]
        assert sum(share > 0.05 for share in found) <= 5
    drifts = [latency_drift(queue(64, 0.3, seed)) or 0.0 for seed in range(100)]
    assert sum(drift > 0.2 for drift in drifts) <= 5


def test_a_closed_loop_that_slows_down_or_speeds_up_drifts() -> None:
    for slower in (2.0, 0.5):
        drift = latency_drift(loop(64, slower))
        assert drift and drift > 0.3
    assert [seed for seed in range(50) if (latency_drift(loop(64, 1.0, seed)) or 0.0) > 0.05] == []


def test_few_requests_and_failures_tell_nothing() -> None:
    few = loop(FEWEST, 2.0)[1:]
    assert rate_shortfall(few) is latency_drift(few) is rate_shortfall([]) is latency_drift([]) is None
    failed = [Record(0, float(i), error="reset: x") for i in range(90)]
    assert rate_shortfall(queue(15, 2.0, 0) + failed) is None
