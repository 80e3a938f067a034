import json
from typing import Any

import pytest

from twofour.bench.load.decode import Exchange, record
from twofour.bench.load.gaps import coalesced
from twofour.bench.load.metrics import token_counts, tpot, tpot_vllm, unsent
from twofour.bench.load.records import Record


def event(text: str = "", so_far: int | None = None, finish: str | None = None, **more: Any) -> bytes:
    body: dict[str, Any] = {"choices": [{"text": text, "finish_reason": finish}], **more}
    if so_far is not None:
        body["usage"] = usage(so_far)
    return b"data: " + json.dumps(body).encode() + b"\n\n"


def usage(output: int, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": 7, "completion_tokens": output, **more}


def last(output: int, **more: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [], "usage": usage(output, **more)}).encode() + b"\n\n" + DONE


DONE = b"data: [DONE]\n\n"
TOGETHER = b'{"object": "text_completion", "choices": [{"text": " a"}]}'


def decode(*reads: tuple[float, bytes], **noted: Any) -> Record:
    return record(Exchange(0, sent_at=0.5, headers_at=0.9, status=200, reads=list(reads), done_at=9.0, **noted))


def test_an_event_counts_the_tokens_that_its_usage_adds() -> None:
    got = decode((1, event("a", 1)), (2, event("bcd", 4)), (3, event("e", 5, "length")), (4, last(5)))
    assert got.chunks == [(1, 1), (2, 3), (3, 1)]
    assert (got.prompt_tokens, got.output_tokens, got.finish_reason, got.error) == (7, 5, "length", None)


def test_a_first_event_without_tokens_is_no_chunk() -> None:
    got = decode((1, event("", 0)), (2, event("a", 1)), (3, event("b", 2, "stop")), (4, last(2)))
    assert got.chunks == [(2, 1), (3, 1)]


def test_a_token_without_text_counts_where_usage_says_so() -> None:
    got = decode((1, event("a", 1)), (2, event("", 2)), (3, event("é", 3, "stop")), (4, last(3)))
    assert got.chunks == [(1, 1), (2, 1), (3, 1)]


def test_usage_at_the_end_only_counts_one_token_per_event_and_knows_the_total() -> None:
    got = decode((1, event("ab")), (2, event("cd")), (3, event("", None, "length")), (4, last(8)))
    assert (got.chunks, got.output_tokens) == ([(1, 1), (2, 1)], 8)


def test_usage_on_the_last_event_with_text_is_not_taken_for_its_tokens() -> None:
    got = decode((1, event("ab")), (2, event("cd", 8, "length")), (3, DONE))
    assert (got.chunks, got.output_tokens) == ([(1, 1), (2, 1)], 8)


def test_without_usage_the_total_is_unknown() -> None:
    got = decode((1, event("a")), (2, event("b", None, "length")), (3, DONE))
    assert (got.chunks, got.output_tokens, got.prompt_tokens) == ([(1, 1), (2, 1)], None, None)


def test_an_event_arrives_with_its_last_byte_and_events_in_one_read_are_counted() -> None:
    one, two = event("a", 1), event("b", 2, "stop")
    cut = decode((1, one[:9]), (2, one[9:-1]), (3, one[-1:] + two), (4, last(2)))
    assert cut.chunks == [(2, 1), (3, 1)]  # its line was complete at 2; the blank line after it says nothing
    assert coalesced(cut) == 0
    together = decode((1, one + two + last(2)))
    assert (together.chunks, coalesced(together)) == ([(1, 1), (1, 1)], 1)


def test_carriage_returns_comments_and_a_missing_last_newline_do_no_harm() -> None:
    stream = b": hello\r\nevent: x\r\n" + event("a", 1, "stop").replace(b"\n", b"\r\n") + DONE.strip()
    got = decode((1, stream[:-5]), (2, stream[-5:]))
    assert (got.chunks, got.error) == ([(1, 1)], None)


def test_cached_tokens_are_read_and_unknown_unless_told() -> None:
    details = {"prompt_tokens_details": {"cached_tokens": 4}}
    assert decode((1, event("a", 1, "stop")), (2, last(1, **details))).cached_tokens == 4
    assert decode((1, event("a", 1, "stop")), (2, last(1, prompt_tokens_details=None))).cached_tokens is None


def test_an_error_that_is_null_is_none() -> None:
    got = decode((1, event("a", 1, error=None)), (2, event("b", 2, "stop", error=None)), (3, last(2)))
    assert (got.error, len(got.chunks)) == (None, 2)


def test_each_number_of_the_usage_is_known_by_itself() -> None:
    got = decode((1, event("a", usage={"completion_tokens": 1})), (2, event("b", 2, "stop")), (3, DONE))
    assert (got.error, got.prompt_tokens, got.output_tokens, got.chunks) == (None, 7, 2, [(1, 1), (2, 1)])
    got = decode((1, event("a", usage={"prompt_tokens": 7})), (2, event("b", None, "stop", usage={})), (3, DONE))
    assert (got.error, got.prompt_tokens, got.output_tokens, got.chunks) == (None, 7, None, [(1, 1), (2, 1)])
    got = decode((1, event("a", usage={"prompt_tokens": None, "completion_tokens": "1"})), (2, DONE))
    assert got.error is not None and got.error.startswith("protocol: an event is no completion")


def delta(so_far: int | None = None, finish: str | None = None, **held: Any) -> bytes:
    body: dict[str, Any] = {"choices": [{"delta": held, "finish_reason": finish}]}
    if so_far is not None:
        body["usage"] = usage(so_far)
    return b"data: " + json.dumps(body).encode() + b"\n\n"


CALL = [{"index": 0, "function": {"name": "f", "arguments": ""}}]


def test_all_that_a_chat_sends_counts_and_is_named() -> None:
    got = decode(
        (1, delta(0, role="assistant", content="")),
        (2, delta(1, reasoning="hm", content=None)),
        (3, delta(4, reasoning_content="so", tool_calls=[])),
        (4, delta(6, tool_calls=CALL, content="")),
        (5, delta(7, content="a")),
        (6, delta(8, refusal="no")),
        (7, delta(9, "stop")),
        (8, last(9)),
    )
    assert got.chunks == [(2, 1), (3, 3), (4, 2), (5, 1), (6, 1), (7, 1)]
    assert got.kinds == {"reasoning": 4, "tool call": 2, "text": 3}
    assert (got.error, got.finish_reason, got.output_tokens) == (None, "stop", 9)


def test_without_usage_every_event_of_a_chat_with_something_to_read_is_a_token() -> None:
    got = decode(
        (1, delta(role="assistant")),
        (2, delta(reasoning="a")),
        (3, delta(content="b")),
        (4, delta(None, "stop")),
        (5, DONE),
    )
    assert (got.chunks, got.kinds) == ([(2, 1), (3, 1)], {"reasoning": 1, "text": 1})


def test_reasoning_that_is_counted_and_not_sent_is_in_no_time_per_token() -> None:
    details = {"completion_tokens_details": {"reasoning_tokens": 90}}
    silent = decode(
        (1, delta(content="a")), (2, delta(content="b")), (3, delta(None, "stop")), (4, last(92, **details))
    )
    assert (silent.reasoning_tokens, unsent(silent), tpot(silent)) == (90, 90, 1.0)
    assert (tpot_vllm(silent), token_counts([silent])) == (1 / 91, "per chunk")
    spoken = decode(
        (1, delta(reasoning="a")),
        (2, delta(content="b")),
        (4, last(2, completion_tokens_details={"reasoning_tokens": 1})),
    )
    assert (unsent(spoken), tpot(spoken)) == (0, 1.0)
    counted = decode((1, delta(91, content="a")), (2, delta(92, "stop", content="b")), (3, last(92, **details)))
    assert (unsent(counted), tpot(counted)) == (0, 1.0)  # the first event has brought what was thought before it


@pytest.mark.parametrize(
    ("status", "headers", "body", "error"),
    [
        (
            301,
            {"location": "http://u:p@b/v1?key=s"},
            b"<p>moved",
            "status 301: the server sends on to http://...@b/v1; ",
        ),
        (307, {"location": "/login?next=v1"}, b"", "status 307: the server sends on to /login; give the address that"),
        (304, {}, b"", "status 304: no answer is in it; is the API there? check the address"),
        (204, {}, b"", "status 204: no answer is in it; is the API there? check the address"),
        (202, {"content-type": "application/json"}, b"{}", "status 202: no answer is in it"),
        (
            200,
            {"content-type": "text/html; charset=utf-8"},
            b"<b>\nLog in",
            "no API: text/html instead of a stream: <b> L",
        ),
        (200, {"content-type": "text/html"}, b"", "no API: text/html instead of a stream"),
        (200, {}, b"pong", "no API: something instead of a stream: pong"),
        (
            200,
            {"content-type": "application/json"},
            TOGETHER,
            'not streamed: the answer came whole; the server ignores "s',
        ),
        (200, {}, TOGETHER, "not streamed"),
        (
            200,
            {"content-type": "application/json"},
            b'{"status": "ok"}',
            'no API: JSON that is no completion: {"status": ',
        ),
        (200, {"content-type": "application/json"}, b'{"error": {"message": "died"}}', "server: died"),
        (200, {"content-type": "text/event-stream"}, b": ping\n\n", "truncated: the stream ended without a finish"),
    ],
)
def test_what_is_no_stream_is_named_for_what_it_is(
    status: int, headers: dict[str, str], body: bytes, error: str
) -> None:
    got = record(Exchange(0, status=status, headers=headers, reads=[(1, body)] if body else []))
    assert got.error is not None and got.error.startswith(error)


def test_events_are_a_stream_whatever_is_said_of_them() -> None:
    got = record(Exchange(0, status=201, headers={"content-type": "text/plain"}, reads=[(1, event("a", 1, "stop"))]))
    assert (got.error, got.chunks) == (None, [(1, 1)])


@pytest.mark.parametrize(
    ("reads", "error"),
    [
        ([event("a", 1)], "truncated: the stream ended without a finish reason"),
        ([], "truncated: the stream ended without a finish reason"),
        ([event("", 0, "stop") + DONE], "empty: the server sent no tokens"),
        ([event("a", 1), b'data: {"error": {"message": "died"}}\n\n', DONE], "server: died"),
        ([b"data: {nonsense\n\n", DONE], "protocol: an event is no completion: {nonsense"),
        (
            [b'data: {"usage": 3, "choices": []}\n\n', DONE],
            'protocol: an event is no completion: {"usage": 3',
        ),
        ([b'data: {"no": "choices"}\n\n', DONE], 'protocol: an event is no completion: {"no"'),
    ],
)
def test_a_stream_that_ended_badly_says_how(reads: list[bytes], error: str) -> None:
    got = decode(*enumerate(reads))
    assert got.error is not None and got.error.startswith(error)


def test_what_the_client_saw_comes_first() -> None:
    got = decode((1, event("a", 1)), error="timeout: no end after 1 s")
    assert (got.error, got.chunks, got.done_at) == ("timeout: no end after 1 s", [(1, 1)], 9.0)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b'{"error": {"message": "no such model"}}', "no such model"),
        (b'{"error": "plain"}', "plain"),
        (b"<html>Bad Gateway", "<html>Bad Gateway"),
        (b"", ""),
    ],
)
def test_a_refusal_keeps_the_servers_own_words(body: bytes, detail: str) -> None:
    got = record(Exchange(3, status=404, reads=[(1, body[:5]), (2, body[5:])]))
    assert got.error == f"status 404: {detail}"
    assert (got.index, got.chunks) == (3, [])
