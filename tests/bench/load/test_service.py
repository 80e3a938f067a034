"""A service is asked in the form that it knows: which API, which fields, which headers, over TLS or not."""

import json
import socketserver
from collections.abc import Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import certificates
import pytest

from twofour.bench.load import client, decode, metrics
from twofour.bench.load.access import Access
from twofour.bench.load.endpoint import Endpoint, served_model
from twofour.bench.load.records import Message, Record, Request
from twofour.bench.load.run import Run, document, measure
from twofour.bench.load.service import Service
from twofour.bench.load.workload import WORDS, Lengths, Schedule, marked, schedule, synthetic
from twofour.bench.proof.mock import Script, serving
from twofour.prune.errors import InputError, ServerError

PROMPTS, TEMPLATE = 8, 20  # tokens
USAGE = {"completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 16}}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return certificates.made_in(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module")
def own_certificate(certificate: Path) -> Iterator[Script]:
    yield Script(certificate=str(certificate))


def drive(service: Service, n: int = 6) -> list[Record]:
    jobs = client.jobs(service, schedule(n, Lengths(PROMPTS), Lengths(3), seed=1), "nonce")
    with client.connected(service.url, 10.0, service.access) as session:
        session.send(jobs, 2)
    return [decode.record(job.exchange) for job in jobs]


def chat_answer(prompt_tokens: int = PROMPTS + TEMPLATE) -> str:
    """A stream of a role, one token of reasoning, one of a tool call and one of text."""
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "so"},
        {"tool_calls": [{"index": 0, "function": {"arguments": "{"}}]},
        {"content": "yes"},
    ]
    events: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    events[-1]["choices"][0]["finish_reason"] = "length"
    events.append({"choices": [], "usage": {"prompt_tokens": prompt_tokens, **USAGE}})
    body = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    return f"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: {len(body)}\r\n\r\n{body}"


def json_answer(status: int, body: dict[str, Any]) -> str:
    said = json.dumps(body)
    return f"HTTP/1.1 {status} -\r\nContent-Type: application/json\r\nContent-Length: {len(said)}\r\n\r\n{said}"


def test_a_chat_is_asked_as_a_chat_and_its_tokens_are_named() -> None:
    with serving(Script(answers=[chat_answer()])) as mock:
        records = drive(Service(mock.url, "mock", api="chat"))
    request = schedule(6, Lengths(PROMPTS), Lengths(3), seed=1)[0]
    assert {served.path for served in mock.served} == {"/v1/chat/completions"}
    assert mock.served[0].body == {
        "model": "mock",
        "messages": [{"role": "user", "content": marked(request, "nonce")}],
        "max_tokens": 3,
        "min_tokens": 3,
        "ignore_eos": True,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True, "continuous_usage_stats": True},
    }
    for record in records:
        assert (record.error, len(record.chunks), record.output_tokens) == (None, 3, 3)
        assert record.kinds == {"reasoning": 1, "tool call": 1, "text": 1}
    assert metrics.summarise(records, 0.0).kinds == pytest.approx(dict.fromkeys(records[0].kinds, 1 / 3))


def chat_run(*prompts: int) -> Run:
    """Of two requests, one at a time: its warm-up is two as well, and a short prompt asks for the template."""
    load = synthetic(2, Lengths(PROMPTS), Lengths(3), 0, concurrency=1)
    with serving(Script(answers=[chat_answer(tokens) for tokens in prompts])) as mock:
        run = measure(Service(mock.url, "mock", api="chat"), load)
    assert len(mock.served) == 2 + 1 + 2
    assert mock.served[2].body["messages"][0]["content"].endswith(f" {WORDS[0]}")
    return run


def test_the_tokens_of_a_chat_template_are_asked_for_and_are_no_error_of_the_load() -> None:
    long = PROMPTS + TEMPLATE
    run = chat_run(long, long, 5 + TEMPLATE, long, long)
    gates = {gate.name: gate.value for gate in run.gates}
    assert document(run, False)["load"]["template_tokens"] == run.template_tokens == TEMPLATE
    assert (gates["prompt_length"], gates["prefix_cache"]) == (0, 0)  # 16 of 28 tokens come from the cache
    run = chat_run(long, long, 5 + 4, long, long)
    gates = {gate.name: gate.value for gate in run.gates}
    assert gates["prompt_length"] == pytest.approx((TEMPLATE - 4 - 2) / PROMPTS)
    assert gates["prefix_cache"] == pytest.approx((16 - 4) / long)


def test_what_a_template_adds_to_each_message_is_asked_for_where_there_are_conversations() -> None:
    history = (Message("user", "a a"), Message("assistant", "b b"))
    turns = [Request(i, 0.0, "c", 5 + 4, 3, history=history) for i in range(2)]
    counts = [5 + 4 + TEMPLATE + 2 * 6] * 5
    counts[2:3] = [5 + TEMPLATE, 5 + 2 + TEMPLATE + 2 * 6]  # the question alone, and after two messages
    with serving(Script(answers=[chat_answer(tokens) for tokens in counts])) as mock:
        run = measure(Service(mock.url, "mock", api="chat"), Schedule(turns, 1, {}))
    assert (run.template_tokens, run.message_tokens) == (TEMPLATE, 6.0)
    assert {gate.name: gate.value for gate in run.gates}["prompt_length"] == 0
    assert [len(served.body["messages"]) for served in mock.served] == [3, 3, 1, 3, 3, 3]


def test_fields_are_added_changed_and_left_away() -> None:
    body = {"temperature": 0.7, "top_k": 20, "min_tokens": None, "stop": ["x"]}
    with serving(Script()) as mock:
        drive(Service(mock.url, "mock", length_field="max_tokens", body=body))
    asked = mock.served[0].body
    assert (asked["temperature"], asked["top_k"], asked["stop"]) == (0.7, 20, ["x"])
    assert "min_tokens" not in asked and asked["ignore_eos"] is True


def test_the_length_goes_by_the_name_that_the_server_knows() -> None:
    with serving(Script(answers=[chat_answer()])) as mock:
        drive(Service(mock.url, "mock", api="chat", plain=True, length_field="max_completion_tokens"))
    assert mock.served[0].body["max_completion_tokens"] == 3 and "max_tokens" not in mock.served[0].body


def test_headers_go_with_every_request_of_a_load_and_outside_of_it() -> None:
    access = Access(headers={"api-key": "s3cret-s3cret", "X-Org": "7"})
    with serving(Script(answers=[json_answer(200, {"choices": []})])) as mock:
        drive(Service(mock.url, "mock", access))
        Endpoint(mock.url, "mock", access).ask("/v1/completions", {"prompt": "a"})
    assert {(s.headers["api-key"], s.headers["x-org"]) for s in mock.served} == {("s3cret-s3cret", "7")}
    assert "authorization" not in mock.served[0].headers


def test_tls_brings_the_same_as_plain_http(own_certificate: Script, certificate: Path) -> None:
    for access in (Access(ca_file=certificate), Access(insecure=True)):
        with serving(own_certificate) as mock:
            assert mock.url.startswith("https://")
            assert served_model(mock.url, access) == "mock"
            records = drive(Service(mock.url, "mock", access))
        assert [(r.error, r.output_tokens, [c.tokens for c in r.chunks]) for r in records] == [(None, 3, [1, 1, 1])] * 6
        assert records[0].connecting_at and records[0].connected_at  # the handshake lies between
        for record in records:
            served = next(s for s in mock.served if s.body["prompt"] == marked(_request(record.index), "nonce"))
            assert all(c.at > written for c, (written, _) in zip(record.chunks, served.written, strict=True))


def _request(index: int) -> Any:
    return schedule(6, Lengths(PROMPTS), Lengths(3), seed=1)[index]


def test_a_certificate_that_is_not_trusted_is_named_with_what_to_do(own_certificate: Script) -> None:
    with serving(own_certificate) as mock:
        with pytest.raises(ServerError, match=r"the certificate is not trusted: self.signed certificate; give --ca-fi"):
            served_model(mock.url)
        records = drive(Service(mock.url, "mock"))
    assert {metrics.error_kind(record) for record in records} == {"TLS"}
    assert mock.served == []


class BadRequest(socketserver.BaseRequestHandler):
    """What an HTTP server makes of the hello of TLS."""

    def handle(self) -> None:
        self.request.recv(4096)
        self.request.sendall(json_answer(400, {}).encode())


def test_the_wrong_scheme_is_named(own_certificate: Script) -> None:
    no_tls = "the server does not speak TLS; give its http address"
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), BadRequest) as plain:
        Thread(target=plain.serve_forever).start()
        address = f"https://127.0.0.1:{plain.server_address[1]}"
        with pytest.raises(ServerError, match=no_tls):
            served_model(address)
        assert {record.error for record in drive(Service(address, "m"))} == {f"TLS: {no_tls}"}
        plain.shutdown()
    with serving(own_certificate) as mock:
        assert all(r.error for r in drive(Service(mock.url.replace("https:", "http:"), "mock")))
    assert mock.served == []


def test_no_proxy_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with serving(Script()) as mock:
        assert served_model(mock.url) == "mock"
        assert all(record.error is None for record in drive(Service(mock.url, "mock")))


UNKNOWN = {"error": {"message": "Unrecognized request argument supplied: ignore_eos"}}
EXTRA = {"detail": [{"loc": ["body", "min_tokens"], "msg": "Extra inputs are not permitted"}]}
CHAT_MODEL = {"error": {"message": "not a completion model; did you mean to use v1/chat/completions?"}}
LENGTH = {"error": {"message": "'max_tokens' is not supported with this model; use 'max_completion_tokens'"}}


@pytest.mark.parametrize(
    ("status", "said", "form", "remedy"),
    [
        (400, UNKNOWN, {}, r"ignore_eos\); give --plain"),
        (422, EXTRA, {}, r"Extra inputs.*; give --plain"),
        (400, {"error": "bad request"}, {}, "knows nothing beyond OpenAI's API needs --plain"),
        (400, UNKNOWN, {"plain": True}, "check URL"),
        (404, CHAT_MODEL, {}, "give --api chat"),
        (400, LENGTH, {"api": "chat", "plain": True}, "give --length-field max_completion_tokens"),
        (401, {"message": "no key"}, {}, r"status 401: no key\); check URL, --model, --api and the key"),
    ],
)
def test_what_a_server_refuses_in_the_warm_up_comes_with_what_to_change(
    status: int, said: dict[str, Any], form: dict[str, Any], remedy: str
) -> None:
    load = synthetic(2, Lengths(PROMPTS), Lengths(3), 0, concurrency=1)
    with serving(Script(answers=[json_answer(status, said)])) as mock, pytest.raises(ServerError, match=remedy):
        measure(Service(mock.url, "mock", **form), load)
    assert len(mock.served) == 2


def test_an_address_in_full_is_taken_as_it_is() -> None:
    with serving(Script(answers=[chat_answer()])) as mock:
        drive(Service(f"{mock.url}/openai/v2/chat/completions?api-version=1", "mock", api="chat"))
    assert {served.path for served in mock.served} == {"/openai/v2/chat/completions?api-version=1"}


def test_a_document_says_how_a_service_was_asked_and_opened() -> None:
    access = Access(headers={"api-key": "s3cret-s3cret"}, insecure=True)
    asked = Service("https://h/v1?sig=s3cret", "m", access, api="chat", body={"top_p": 0.9})
    assert asked.described() == {
        "url": "https://h/v1?sig=...",
        "model": "m",
        "api": "chat",
        "plain": False,
        "length_field": "max_tokens",
        "body": {"top_p": 0.9},
        "headers": ["api-key"],
        "tls": "any",
        "timeout_s": 600.0,
    }
    assert Service("http://h", "m").described()["tls"] is None


def test_no_such_certificates_are_refused_before_anything_is_sent(tmp_path: Path) -> None:
    with (
        pytest.raises(InputError, match="no certificate"),
        client.connected("https://h", 1.0, Access(ca_file=tmp_path)),
    ):
        pass
