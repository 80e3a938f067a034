"""Traces: taken from the caller, and told to a collector."""

import json
import logging
import queue
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from twofour.prune.errors import InputError
from twofour.serve.edge.observing.traceparent import trace_id, traceparent
from twofour.serve.edge.observing.tracing import Tracer

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{TRACE}-{SPAN}-01"


def test_which_headers_are_one() -> None:
    assert traceparent(PARENT.encode()) == PARENT
    assert trace_id(PARENT) == TRACE
    bad = (f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{SPAN}-01", PARENT.upper())
    for given in (*bad, PARENT + "-x", PARENT + "\n", "", TRACE):
        assert traceparent(given.encode()) is None
    assert traceparent(None) is None and trace_id(None) is None


def test_a_trace_is_echoed_and_logged(shared: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "twofour.access"):
        assert shared.client.get("/version", headers={"traceparent": PARENT}).headers["traceparent"] == PARENT
        assert "traceparent" not in shared.client.get("/version", headers={"traceparent": "x"}).headers
        shared.eventually(lambda: len(caplog.records) == 2)
    assert [json.loads(record.getMessage())["trace"] for record in caplog.records] == [TRACE, None]


@pytest.fixture
def collector() -> Iterator[tuple[str, "queue.Queue[bytes]"]]:
    """Its address and what it is sent."""
    received: queue.Queue[bytes] = queue.Queue()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/v1/traces"
            received.put(self.rfile.read(int(self.headers["content-length"])))
            self.send_response(200)
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/", received
        server.shutdown()
        thread.join()


def test_one_span_a_request(launch: Any, collector: Any) -> None:
    proto = pytest.importorskip(
        "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="needs twofour[otel]"
    )
    endpoint, received = collector
    tracer = Tracer(endpoint)
    server = launch(watchers=[tracer.record])
    server.client.headers["traceparent"] = PARENT
    server.chat(max_tokens=5, temperature=0.5, n=2, stream=True)
    del server.client.headers["traceparent"]
    server.complete(max_tokens=3, prompt="my secret")
    server.complete(n=0)
    server.client.get("/health")
    server.eventually(lambda: server.metric("http_requests_total") >= 4)
    tracer.close()
    sent = proto.ExportTraceServiceRequest.FromString(received.get(timeout=5))
    assert b"secret" not in sent.SerializeToString()
    chat, text, refused = sent.resource_spans[0].scope_spans[0].spans
    assert (chat.trace_id.hex(), chat.parent_span_id.hex()) == (TRACE, SPAN)
    assert chat.end_time_unix_nano > chat.start_time_unix_nano > 1.7e18
    said = attributes(chat)
    expected = {
        "gen_ai.operation.name": "chat",
        "gen_ai.request.model": "m",
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.n": 2,
        "gen_ai.usage.output_tokens": 10,
        "gen_ai.latency.time_in_queue": 0.01,
        "http.response.status_code": 200,
    }
    assert {name: said[name] for name in expected} == expected
    assert said["gen_ai.latency.time_to_first_token"] > 0
    assert text.parent_span_id == b"" and attributes(text)["gen_ai.operation.name"] == "text_completion"
    assert attributes(refused)["error.type"] == "invalid_request_error"


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: getattr(a.value, a.value.WhichOneof("value")) for a in span.attributes}


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk", None)
    with pytest.raises(InputError, match=r"twofour\[otel\]"):
        Tracer("http://127.0.0.1:1")
