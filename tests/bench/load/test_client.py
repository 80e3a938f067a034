import gc
import os
import signal
import socket
import subprocess
import sys
import time
from itertools import accumulate
from typing import Any

import pytest

from twofour.bench.load import client, decode, gaps, metrics
from twofour.bench.load.client import Session
from twofour.bench.load.records import Record, Request
from twofour.bench.load.service import Service
from twofour.bench.load.workload import Lengths, lengths, marked, schedule
from twofour.bench.proof.mock import Mock, Script, serving

N = 24


def drive(
    mock: Mock, requests: list[Request], concurrency: int | None = 4, idle_s: float = 30.0, **more: Any
) -> list[Record]:
    with client.connected(mock.url, idle_s) as session:
        return send(session, mock.url, requests, concurrency, **more)


def send(
    session: Session,
    url: str,
    requests: list[Request],
    concurrency: int | None,
    plain: bool = False,
    nonce: str = "nonce",
    **more: Any,
) -> list[Record]:
    jobs = client.jobs(Service(url, "mock", plain=plain), requests, nonce)
    session.send(jobs, concurrency, **more)
    return [decode.record(job.exchange) for job in jobs]


def against(script: Script, n: int = N, **more: Any) -> tuple[Mock, list[Record], list[Request]]:
    requests = schedule(n, lengths("9~0.3"), lengths("8~0.3"), seed=1)
    with serving(script) as mock:
        return mock, drive(mock, requests, **more), requests


@pytest.mark.parametrize(
    "script",
    [
        Script(),
        Script(first_token_s=0.002, token_s=0.001),
        Script(role_chunk=True),
        Script(tokens_per_chunk=4),
        Script(chunks_per_write=3),
        Script(close_after=True),
        Script(drop_reused=True),
        Script(stop_after=3),
        Script(cached_tokens=2),
    ],
)
def test_every_chunk_is_seen_after_it_was_written_and_none_is_missed(script: Script) -> None:
    mock, records, requests = against(script)
    truth = {served.body["prompt"]: served for served in mock.served}
    assert len(truth) == len(records) == N
    for request, record in zip(requests, records, strict=True):
        served = truth[marked(request, "nonce")]
        assert record.index == request.index
        assert (record.error, record.status) == (None, 200)
        assert [chunk.tokens for chunk in record.chunks] == [tokens for _, tokens in served.written]
        assert all(c.at > written for c, (written, _) in zip(record.chunks, served.written, strict=True))
        assert record.output_tokens == sum(tokens for _, tokens in served.written)
        assert record.prompt_tokens == request.prompt_tokens
        assert record.cached_tokens == script.cached_tokens
        assert record.finish_reason == ("length" if record.output_tokens == request.output_tokens else "stop")
        assert record.sent_at and record.headers_at and record.done_at
        assert record.scheduled_at < served.received_at < record.chunks[0].at
        assert record.scheduled_at <= record.sent_at
        assert record.headers_at <= record.chunks[0].at <= record.chunks[-1].at <= record.done_at


def test_a_role_chunk_is_no_first_token() -> None:
    _, records, _ = against(Script(role_chunk=True, first_token_s=0.05), n=3)
    for record in records:
        assert record.sent_at and record.headers_at
        assert record.chunks[0].at - record.headers_at > 0.03


def test_chunks_written_together_are_noticed() -> None:
    _, records, _ = against(Script(chunks_per_write=100))
    assert all(gaps.coalesced(record) == 1 for record in records if len(record.chunks) > 1)
    _, records, _ = against(Script(token_s=0.05), n=2, concurrency=1)
    assert sum(gaps.coalesced(record) for record in records) == 0


@pytest.mark.parametrize(("usage", "counts"), [("every", "per chunk"), ("last", "per request"), ("never", "none")])
def test_servers_differ_in_the_usage_that_they_send(usage: Any, counts: str) -> None:
    mock, records, _ = against(Script(usage=usage, tokens_per_chunk=2))
    assert metrics.summarise(records, 0.0).token_counts == counts
    tokens = [sum(tokens for _, tokens in served.written) for served in mock.served]
    known = [record.output_tokens for record in records]
    assert known == [None] * N if usage == "never" else sorted(known) == sorted(tokens)  # type: ignore[type-var]


@pytest.mark.parametrize(
    ("script", "kind", "chunks"),
    [
        (Script(reset_after=2), "reset", 2),
        (Script(reset_after=0), "reset", 0),
        (Script(hang_after=2), "timeout", 2),
        (Script(refuse_every=1), "status 503", 0),
    ],
)
def test_each_way_to_fail_has_its_name_and_its_one_ending(script: Script, kind: str, chunks: int) -> None:
    requests = schedule(6, Lengths(8), Lengths(5), seed=1)
    with serving(script) as mock:
        records = drive(mock, requests, idle_s=0.2)
    assert [metrics.error_kind(record) for record in records] == [kind] * 6
    assert [len(record.chunks) for record in records] == [chunks] * 6
    assert all(record.done_at and record.done_at >= record.scheduled_at for record in records)
    assert len(mock.served) == 6  # nothing was tried again


def test_one_refusal_in_three_leaves_the_others_unharmed() -> None:
    mock, records, _ = against(Script(refuse_every=3))
    assert sum(record.error == "status 503: the mock refuses" for record in records) == N // 3
    assert sum(record.error is None for record in records) == N - N // 3
    assert mock.connections <= 4  # a refusal costs no connection


def test_a_connection_that_the_server_closed_is_tried_once_more_and_counted() -> None:
    mock, records, _ = against(Script(drop_reused=True), concurrency=1)
    assert [record.error for record in records] == [None] * N
    assert [record.reconnected for record in records] == [False] + [True] * (N - 1)
    assert len(mock.served) == mock.connections == N


def test_connections_are_reused() -> None:
    mock, records, _ = against(Script(), concurrency=3)
    assert mock.connections <= 3
    assert not any(record.reconnected for record in records)


def test_where_nothing_listens_every_request_says_so() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with client.connected(url, 5.0) as session:
            records = send(session, url, schedule(3, Lengths(8), Lengths(2), 0), 2)
    assert [metrics.error_kind(record) for record in records] == ["connect"] * 3
    assert all(record.sent_at is None for record in records)


def test_a_closed_loop_keeps_its_number_under_way() -> None:
    _, records, _ = against(Script(token_s=0.002), concurrency=5)
    spans = [(record.scheduled_at, record.done_at or 0.0) for record in records]
    changes = sorted([(start, 1) for start, _ in spans] + [(end, -1) for _, end in spans])
    assert max(accumulate(step for _, step in changes)) == 5
    alone = spans[0]
    assert all(start >= alone[1] for start, _ in spans[1:])


def test_an_open_loop_waits_for_no_answer() -> None:
    requests = schedule(N, Lengths(8), Lengths(5), seed=2, rate=200.0)
    with serving(Script(hang_after=0)) as mock:
        records = drive(mock, requests, None, idle_s=0.3)
    assert len(mock.served) == mock.connections == N
    starts = [record.scheduled_at - records[0].scheduled_at for record in records]
    assert starts == pytest.approx([request.at_s - requests[0].at_s for request in requests])
    assert all(record.sent_at and record.sent_at >= record.scheduled_at for record in records)


def test_what_is_asked_for() -> None:
    request = schedule(1, Lengths(8), Lengths(3), 0)[0]
    with serving(Script()) as mock:
        drive(mock, [request])
    assert mock.served[0].body == {
        "model": "mock",
        "prompt": marked(request, "nonce"),
        "max_tokens": 3,
        "min_tokens": 3,
        "ignore_eos": True,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }


def test_nothing_but_the_api_of_openai() -> None:
    request = schedule(1, Lengths(8), Lengths(3), 0)[0]
    with serving(Script()) as mock:
        drive(mock, [request], plain=True)
    assert mock.served[0].body == {
        "model": "mock",
        "prompt": marked(request, "nonce"),
        "max_tokens": 3,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


def test_a_prompt_of_a_hundred_thousand_words() -> None:
    requests = schedule(2, Lengths(100_000), Lengths(3), 0)
    with serving(Script()) as mock:
        records = drive(mock, requests, 1)
    assert [(r.error, r.prompt_tokens, len(r.chunks)) for r in records] == [(None, 100_000, 3)] * 2


def test_a_stalled_client_shows_in_its_lags() -> None:
    lags: list[float] = []
    against(Script(token_s=0.002), lags=lags, on_end=lambda: time.sleep(0.04))
    assert max(lags) > 0.03


def test_every_ending_is_announced_and_the_collector_is_back_on() -> None:
    ends: list[bool] = []
    against(Script(refuse_every=2), on_end=lambda: ends.append(gc.isenabled()))
    assert ends == [False] * N
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_no_requests_no_records() -> None:
    with serving(Script()) as mock:
        assert drive(mock, []) == drive(mock, [], None) == []


def test_connections_of_one_load_are_there_for_the_next() -> None:
    requests = schedule(9, Lengths(8), Lengths(3), 0)
    with serving(Script(token_s=0.005)) as mock, client.connected(mock.url, 10.0) as session:
        first = send(session, mock.url, requests, 3, nonce="warm-up")
        then = send(session, mock.url, requests, 3)
        in_open_loop = send(session, mock.url, schedule(2, Lengths(8), Lengths(3), 0, rate=500.0), None)
    assert mock.connections == 3
    assert sum(record.connected_at is not None for record in first) == 3
    assert all(record.connected_at is None for record in [*then, *in_open_loop])


def test_the_time_of_connecting_is_known_and_no_lag_of_the_client() -> None:
    _, records, _ = against(Script(), n=3, concurrency=1)
    first = records[0]
    assert first.connecting_at and first.connected_at and first.sent_at
    assert first.scheduled_at <= first.connecting_at < first.connected_at <= first.sent_at
    assert records[1].connecting_at is None


def test_an_answer_may_take_longer_than_the_time_out_as_long_as_something_comes() -> None:
    _, records, _ = against(Script(token_s=0.05, first_token_s=0.05), n=1, concurrency=1, idle_s=0.2)
    first = records[0]
    assert first.error is None and first.done_at and first.sent_at
    assert first.done_at - first.sent_at > 0.2


def test_an_interrupt_ends_what_is_under_way_and_leaves_the_rest_unsent() -> None:
    requests, ended = schedule(6, Lengths(8), Lengths(4), 0), []

    def on_end() -> None:
        ended.append(1)
        if len(ended) == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with serving(Script(token_s=0.02)) as mock:
        jobs = client.jobs(Service(mock.url, "mock"), requests, "nonce")
        with pytest.raises(KeyboardInterrupt), client.connected(mock.url, 10.0) as session:
            session.send(jobs, 1, on_end=on_end)
    records = [decode.record(job.exchange) for job in jobs]
    assert [metrics.error_kind(record) for record in records if record.sent_at] == ["", "", "cut off"]
    assert all(record.done_at for record in records if record.sent_at)


def test_as_many_sockets_as_the_system_allows() -> None:
    code = """
import resource
from twofour.bench.load import client
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (64, most))
with client.connected("http://127.0.0.1:1", 1.0):
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == most
"""
    subprocess.run([sys.executable, "-c", code], check=True)
