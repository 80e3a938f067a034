"""What a server says of itself during a run: samples by name, means by its counters, and the process that looks."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from bench_findings import CLOSED, run

from twofour.bench.load import polling, told
from twofour.bench.load.access import Access
from twofour.bench.load.endpoint import Endpoint, Memory
from twofour.bench.load.polling import Looker, look
from twofour.bench.load.run import document
from twofour.bench.load.server_side import Held, Sample, ServerSide, named
from twofour.bench.load.stored import read
from twofour.bench.load.table import table

VLLM = """# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a } b"} 3.0
vllm:num_requests_running{engine="1",model_name="a } b"} 4.0
vllm:num_requests_waiting{engine="0"} NaN
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.75
vllm:time_to_first_token_seconds_bucket{le="0.1"} 5
vllm:time_to_first_token_seconds_sum{engine="0"} 1.5
vllm:time_to_first_token_seconds_count{engine="0"} 5
vllm:generation_tokens_total 100
"""


def test_samples_by_name() -> None:
    assert named(VLLM) == {
        "running": 7.0,
        "kv_cache_usage": 0.5,
        "ttft_s": 1.5,
        "ttft_n": 5.0,
        "output_tokens": 100.0,
    }
    assert named("sglang:num_queue_reqs 2\nllamacpp:requests_processing 1\n") == {"waiting": 2.0, "running": 1.0}
    assert named("") == {}


SAMPLES = [
    Sample(99.5, running=0, output_tokens=1000, ttft_s=5.0, ttft_n=10, queue_s=0.0, queue_n=0, gpu_j=50.0),
    Sample(100.5, running=2, output_tokens=1100),
    Sample(101.5, running=1, output_tokens=1400, ttft_s=6.0, ttft_n=30, queue_s=0.0, queue_n=0, gpu_j=90.0),
]


def test_totals_are_what_grew() -> None:
    totals = ServerSide(SAMPLES, Held()).totals
    assert totals is not None
    assert (totals.output_tokens, totals.ttft_s, totals.gpu_j) == (400, pytest.approx(0.05), 40)
    assert totals.queue_s is None and totals.prompt_tokens is None
    again = ServerSide([SAMPLES[0], replace(SAMPLES[2], output_tokens=3.0)], Held()).totals
    assert again is not None and again.output_tokens is None  # the server was started again meanwhile
    assert ServerSide(SAMPLES[:1], Held()).totals is None


def test_series_and_rates() -> None:
    side = ServerSide(SAMPLES, Held())
    assert side.series("running") == [(99.5, 0), (100.5, 2), (101.5, 1)] and side.series("waiting") == []
    assert side.rate("output_tokens") == [(99.5, 100.0), (100.5, 300.0)]


def test_a_run_keeps_it_and_shows_it_beside_its_own() -> None:
    held = Held(weight_bytes=2**30, kv_capacity_tokens=4096)
    done = replace(run(CLOSED, 0, 0.01), server=ServerSide(SAMPLES, held))
    written = json.loads(json.dumps(document(done, with_records=True), allow_nan=False))
    assert [sample["at"] for sample in written["server"]["samples"]] == [-0.5, 0.5, 1.5]
    assert json.loads(json.dumps(document(read(written), with_records=True)))["server"] == written["server"]
    assert document(done, with_records=False)["server"]["totals"]["output_tokens"] == 400
    assert document(done, with_records=False)["server"]["samples"] == []
    rows = {row.what: row[1:] for row in told.beside(done)}
    assert rows == {"time to first token, mean": ("50.00 ms", "20.00 ms"), "output tokens": ("400", "120")}
    text = table(done)
    assert "memory: weights 1.00 GiB" in text and "energy of GPUs: 40 J, 0.3333 J per output token" in text


class Answers(BaseHTTPRequestHandler):
    asked: list[str]
    said = VLLM

    def do_GET(self) -> None:
        type(self).asked.append(self.headers["Authorization"])
        tokens = 100 + 10 * len(type(self).asked)
        body = self.said.replace("total 100", f"total {tokens}").encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def server(said: str) -> Iterator[tuple[Endpoint, list[str]]]:
    handler = type("Handler", (Answers,), {"asked": [], "said": said})
    with HTTPServer(("127.0.0.1", 0), handler) as http:
        threading.Thread(target=http.serve_forever, daemon=True).start()
        try:
            yield Endpoint(f"http://127.0.0.1:{http.server_port}", "m", Access("secret")), handler.asked
        finally:
            http.shutdown()


def test_it_looks_before_and_after_and_no_command_line_has_the_key() -> None:
    with server(VLLM) as (endpoint, asked):
        with Looker(endpoint) as looker:
            looker.begin(served=True)
            assert len(asked) == 1
            process = looker._process
            assert process is not None and "secret" not in str(process.args)
        assert process.poll() == 0
        seen = looker.seen(Memory(weight_bytes=5))
    assert set(asked) == {"Bearer secret"} and len(asked) >= 2
    assert seen is not None and len(seen.samples) == len(asked)
    assert seen.samples[0].output_tokens == 110 and seen.samples[0].running == 7
    assert seen.totals is not None and seen.totals.output_tokens == 10 * (len(asked) - 1)
    assert seen.held.weight_bytes == 5 and (seen.held.resident_bytes or 0) > 1 << 20


def test_what_is_no_text_of_prometheus_says_nothing() -> None:
    with server("<html>vllm:generation_tokens_total {not a number}\nvllm:generation_tokens_total x y z\n") as (end, _):
        assert replace(look(end, None), at=0.0) == Sample(0.0)
    assert replace(look(Endpoint("http://127.0.0.1:1", "m"), None), at=0.0) == Sample(0.0)


def test_a_server_without_metrics_is_not_looked_at() -> None:
    with Looker(Endpoint("http://192.0.2.1", "m")) as looker:
        looker.begin(served=False)
        assert looker._process is None
    assert looker.seen(None) is None


def test_the_process_that_looks_opens_the_server_as_the_client_does() -> None:
    opened = Access("a-key", {"X-Tenant": "seven"}, ca_file=Path("own.pem"))
    endpoint = Endpoint("https://127.0.0.1:1", "m", opened)
    assert polling._endpoint(json.loads(json.dumps(asdict(endpoint), default=str))) == endpoint
    assert polling._endpoint(None) is None
