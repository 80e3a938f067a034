import http.client
import json
from typing import Any

import pytest

from twofour.bench.load import client, decode
from twofour.bench.load.records import Record
from twofour.bench.load.service import Service
from twofour.bench.load.workload import Lengths, schedule
from twofour.bench.proof.batching import Steps
from twofour.bench.proof.mock import Mock, Script, serving

MESSAGES = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "one two three"}]


def post(mock: Mock, path: str, **body: Any) -> tuple[int, str]:
    connection = http.client.HTTPConnection(mock.url.removeprefix("http://"), timeout=30)
    connection.request("POST", path, json.dumps(body), {"X-Mine": "yes"})
    response = connection.getresponse()
    said = response.status, response.read().decode()
    connection.close()
    return said


def events(said: str) -> list[dict[str, Any]]:
    lines = [line.removeprefix("data: ") for line in said.splitlines() if line]
    assert lines.pop() == "[DONE]"
    return [json.loads(line) for line in lines]


def test_a_chat_says_its_deltas_in_order_and_counts_them() -> None:
    script = Script(role_chunk=True, deltas=("reasoning_content", "reasoning", "tool_calls", "content"))
    with serving(script) as mock:
        status, said = post(mock, "/v1/chat/completions", messages=MESSAGES, max_tokens=5, stream=True)
    *told, last = events(said)
    names = [sorted(event["choices"][0]["delta"]) for event in told]
    assert status == 200
    assert names == [["content", "role"], ["reasoning_content"], ["reasoning"], ["tool_calls"], *[["content"]] * 2]
    assert [event["usage"]["completion_tokens"] for event in told] == [0, 1, 2, 3, 4, 5]
    assert told[3]["choices"][0]["delta"]["tool_calls"][0]["function"]["arguments"] == " word"
    assert told[-1]["choices"][0]["finish_reason"] == "length"
    assert (last["choices"], last["usage"]["prompt_tokens"]) == ([], 5)
    served = mock.served[0]
    assert (served.chat, served.prompt, served.headers["x-mine"]) == (True, "be brief\none two three", "yes")


def test_a_mock_that_forgets_answers_like_another() -> None:
    said = {}
    for remembers in (True, False):
        with serving(Script(remembers=remembers)) as mock:
            _, said[remembers] = post(mock, "/v1/completions", prompt="one two", max_tokens=3, stream=True)
        assert [len(served.written) for served in mock.served] == [3 if remembers else 0]
    assert [event["choices"] for event in events(said[True])] == [event["choices"] for event in events(said[False])]


@pytest.mark.parametrize("chat", [True, False])
def test_every_event_says_what_it_is(chat: bool) -> None:
    asked = {"messages": MESSAGES} if chat else {"prompt": "one two"}
    path, kind = ("chat/completions", "chat.completion.chunk") if chat else ("completions", "text_completion")
    with serving(Script()) as mock:
        _, said = post(mock, f"/v1/{path}", max_tokens=3, stream=True, **asked)
    assert [event["object"] for event in events(said)] == [kind] * 4


@pytest.mark.parametrize("chat", [True, False])
def test_an_answer_that_is_not_streamed_comes_whole(chat: bool) -> None:
    asked = {"messages": MESSAGES} if chat else {"prompt": "one two"}
    with serving(Script()) as mock:
        path = "/v1/chat/completions" if chat else "/v1/completions"
        status, said = post(mock, path, max_tokens=3, **asked)
    choice = json.loads(said)["choices"][0]
    text = choice["message"]["content"] if chat else choice["text"]
    assert (status, text) == (200, " word word word")


def test_a_server_that_knows_no_more_than_openais_api() -> None:
    with serving(Script(refused_fields=("ignore_eos",))) as mock:
        refused = post(mock, "/v1/completions", prompt="a", max_tokens=1, ignore_eos=True)
        taken = post(mock, "/v1/completions", prompt="a", max_tokens=1)
    assert (refused[0], taken[0]) == (400, 200)
    assert json.loads(refused[1])["error"]["message"] == "unknown field ignore_eos"


def drive(script: Script, concurrency: int, n: int = 8) -> tuple[Mock, list[Record]]:
    with serving(script) as mock, client.connected(mock.url, 30.0) as session:
        jobs = client.jobs(Service(mock.url, "mock"), schedule(n, Lengths(20), Lengths(6), 1), "nonce")
        session.send(jobs, concurrency)
    return mock, [decode.record(job.exchange) for job in jobs]


def test_requests_share_steps_and_wait_where_they_are_too_many() -> None:
    mock, records = drive(Script(steps=Steps(0.01, 1e-4, 1e-4, sequences=2)), 4)
    assert all(record.error is None and record.output_tokens == 6 for record in records)
    spans = [(served.received_at, served.written[0][0], served.written[-1][0]) for served in mock.served]
    for _, first, _ in spans:
        assert sum(begun <= first < last for _, begun, last in spans) <= 2  # there are two places
    assert any(came < last <= first for came, first, _ in spans for _, _, last in spans)  # somebody waited for one


def test_steps_and_scripts_break_off_alike() -> None:
    _, records = drive(Script(steps=Steps(0.001, 0.0, 0.0), reset_after=2), 2)
    assert [len(record.chunks) for record in records] == [2] * 8
    assert all((record.error or "").startswith("reset") for record in records)


def test_a_distance_is_in_every_time_and_in_no_gap_of_the_server() -> None:
    mock, records = drive(Script(distance_s=0.05), 1, n=3)
    for served, record in zip(mock.served, records, strict=True):
        assert served.received_at - record.scheduled_at > 0.02  # half of it, as timers count milliseconds
        assert record.chunks[0].at - served.written[0][0] > 0.02
