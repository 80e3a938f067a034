"""Servers that run already: how they are named, and when one is well again that was frozen."""

from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread
from typing import ClassVar

import pytest

from twofour.bench.load.service import Service
from twofour.bench.targets import frozen
from twofour.bench.targets.running import Running, read_running
from twofour.prune.errors import InputError


def asked(url: str, model: str | None) -> Service:
    return Service(url, model or "its only one")


@pytest.mark.parametrize("pid", ["quick=x", "quick", "quick=²", f"quick={2**22 + 1}", f"quick={2**70}"])
def test_what_cannot_be_frozen_is_refused(pid: str) -> None:
    with pytest.raises(InputError, match="does not name a process that leads its group"):
        read_running(["quick=http://a:1#m"], asked, pids=[pid])


@pytest.mark.parametrize("given", [["a"], ["a=b"], ["=http://a:1"], ["a=http://a:1#m", "a=http://b:1#m"]])
def test_what_is_no_server_is_refused(given: list[str]) -> None:
    with pytest.raises(InputError, match=r"give .NAME=.URL or .NAME=.URL#MODEL|a name of its own"):
        read_running(given, asked)


def test_who_is_plain_is_named_and_who_has_no_name_gets_one() -> None:
    given = ["http://a:1#m", "b=http://b:1"]
    assert read_running(given, asked, ["b"]) == [
        Running("a:1", Service("http://a:1", "m")),
        Running("b", Service("http://b:1", "its only one", plain=True)),
    ]
    with pytest.raises(InputError, match="c is no server here; give names of a:1, b to --plain-for and --pid"):
        read_running(given, asked, ["c"])


class Statuses(BaseHTTPRequestHandler):
    """Answers with what is left for a path, the last for good."""

    left: ClassVar[dict[str, list[int]]] = {}

    def do_GET(self) -> None:
        statuses = self.left[self.path]
        self.send_response(statuses.pop(0) if len(statuses) > 1 else statuses[0])
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_a_server_is_well_when_it_is_ready_or_knows_no_such_word(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(frozen, "POLL_S", 0.0)
    monkeypatch.setattr(frozen, "signal_group", lambda group, number: None)
    with HTTPServer(("127.0.0.1", 0), Statuses) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            running = Running("a", Service(f"http://127.0.0.1:{server.server_port}", "m"), group=1)
            for statuses in ({"/ready": [503, 503, 200], "/health": [200]}, {"/ready": [404], "/health": [500, 200]}):
                Statuses.left = statuses
                with running.awake():
                    assert all(len(left) == 1 for left in statuses.values())
        finally:
            server.shutdown()
            thread.join()
