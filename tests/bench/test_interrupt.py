"""A measurement that is killed keeps what it has."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from twofour.bench import interrupt

ANSWERED = 7  # requests, three of them of the warm-up; then the server says no more


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    asked, lock = 0, threading.Lock()
    stuck, over = threading.Event(), threading.Event()

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self.send_error(404)

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        with self.lock:
            Handler.asked += 1
            number = Handler.asked
        if number > ANSWERED:
            if number == ANSWERED + 2:  # both of the two at a time
                self.stuck.set()
            self.over.wait(60)
            return
        usage = {"prompt_tokens": 8, "completion_tokens": 2}
        event = {"choices": [{"text": "a word", "finish_reason": "length"}], "usage": usage}
        body = f"data: {json.dumps(event)}\n\ndata: [DONE]\n\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextmanager
def stuck_run(*words: str) -> Iterator["subprocess.Popen[str]"]:
    """`bench run` that has had some answers and waits for others."""
    Handler.asked = 0
    Handler.stuck.clear()
    Handler.over.clear()
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    load = [f"http://127.0.0.1:{server.server_port}", "--model", "m", "--concurrency", "2", "--requests", "40"]
    lengths = ["--prompt-tokens", "8", "--output-tokens", "2"]
    command = [sys.executable, "-m", "twofour", "bench", "run", *load, *lengths, *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert Handler.stuck.wait(60)
            yield process
        finally:
            process.kill()
            Handler.over.set()
            server.shutdown()
            server.server_close()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_killed_run_keeps_and_prints_what_it_has_measured(
    number: signal.Signals, status: int, tmp_path: Path
) -> None:
    out = tmp_path / "run.json"
    with stuck_run("--out", str(out)) as process:
        process.send_signal(number)
        said, errors = process.communicate(timeout=60)
    assert process.returncode == status, errors
    assert "4 completed" in said and "CUT OFF" in said and said.endswith("INVALID: do not quote these numbers\n")
    written = json.loads(out.read_text())
    assert written["cut_off"] is True and written["valid"] is False
    assert written["summary"]["completed"] == 4
    good = [record for record in written["records"] if record["error"] is None]
    assert [record["output_tokens"] for record in good] == [2] * 4
    assert {record["error"] for record in written["records"]} - {None} == {"cut off: the run was interrupted"}
    assert "Traceback" not in errors


def test_a_folder_that_is_gone_in_the_end_costs_the_file_and_not_the_table(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    with stuck_run("--out", str(folder / "run.json"), "--json") as process:
        folder.rmdir()
        process.send_signal(signal.SIGTERM)
        said, errors = process.communicate(timeout=60)
    assert json.loads(said)["summary"]["completed"] == 4
    assert process.returncode == 1 and "cannot be written" in errors


def test_before_anything_is_measured_a_signal_ends_it_with_its_status() -> None:
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
        with pytest.raises(SystemExit) as ended, interrupt.in_order():
            os.kill(os.getpid(), number)
        assert ended.value.code == 128 + number
    assert {number: signal.getsignal(number) for number in before} == before
