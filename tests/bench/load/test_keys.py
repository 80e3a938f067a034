"""A key reaches its server, and nothing else: no traceback, no message, no result."""

import json
import sys
import traceback
from pathlib import Path

import pytest

from twofour.bench.commands import INVALID
from twofour.bench.comparison.compare import compare
from twofour.bench.hardware import command_line
from twofour.bench.load import client, decode, wire
from twofour.bench.load.access import Access
from twofour.bench.load.decode import Exchange
from twofour.bench.load.endpoint import Endpoint
from twofour.bench.load.keys import read_key
from twofour.bench.load.pace import Job
from twofour.bench.load.records import Request
from twofour.bench.load.service import Service
from twofour.bench.proof.mock import Script, serving
from twofour.cli import main
from twofour.prune.errors import InputError

KEY = "sk-SECRET-0123"
TWO_LINES = f"{KEY}\nother"


def test_a_file_for_serve_is_one_for_bench(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"\n  {KEY} \r\nanother\n")
    assert read_key(keys) == KEY
    assert read_key(None) is None


@pytest.mark.parametrize("content", [b"sk-SECRET 0123", "sk-SECRET-é".encode(), b"sk-SECRET\x01", b"sk-SECRET\xff"])
def test_what_is_no_key_is_refused_and_not_quoted(content: bytes, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    keys.write_bytes(content)
    with pytest.raises(InputError, match="API key") as caught:
        read_key(keys)
    assert "SECRET" not in "".join(traceback.format_exception(caught.value))


def test_no_message_and_no_traceback_quotes_a_key_that_no_header_can_carry() -> None:
    calls = [
        lambda: Access(TWO_LINES),
        lambda: compare("http://127.0.0.1:1", "http://127.0.0.1:1", api_key=TWO_LINES),
    ]
    for call in calls:
        with pytest.raises(InputError, match="the API key has") as caught:
            call()
        assert KEY not in "".join(traceback.format_exception(caught.value))


def test_nothing_that_holds_a_key_shows_it() -> None:
    message = wire.post(wire.target("h"), "/completions", b"{}", Access(KEY).fields())
    assert KEY.encode() in message
    held = [
        Job(Request(0, 0.0, "a", 1, 1), message),
        Endpoint("http://h", "m", Access(KEY)),
        wire.target(f"http://h?key={KEY}"),
    ]
    assert KEY not in repr(held)


def test_a_server_that_sends_the_key_back_does_not_get_it_into_a_result() -> None:
    echo = json.dumps({"error": {"message": "x" * 290 + f"wrong key {KEY}"}}).encode()
    refused = decode.record(Exchange(0, status=401, reads=[(1.0, echo)]), (KEY,))
    failed = decode.record(Exchange(0, status=200, reads=[(1.0, b"data: " + echo + b"\n\n")]), (KEY,))
    assert refused.error and failed.error
    assert "sk-" not in refused.error + failed.error


def test_a_run_sends_the_key_and_writes_it_nowhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    keys, out = tmp_path / "keys", tmp_path / "run.json"
    keys.write_text(KEY)
    with serving(Script(refuse_every=3)) as mock:
        words = ["bench", "run", f"{mock.url}?key={KEY}", "--api-key-file", str(keys), "--out", str(out)]
        assert main([*words, "--requests", "6", "--prompt-tokens", "8", "--output-tokens", "3"]) == INVALID
    assert {served.headers["authorization"] for served in mock.served} == {f"Bearer {KEY}"}
    assert {served.path for served in mock.served} == {f"/v1/completions?key={KEY}"}
    said = capsys.readouterr()
    assert KEY not in out.read_text() + said.out + said.err


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("http://u:p@h:1/v1", "http://...@h:1/v1"),
        ("a=http://h/v1?api-version=2&api-key=s&sig=t#m", "a=http://h/v1?api-version=2&api-key=...&sig=...#m"),
        ("no address?key=1", "no address?key=1"),
    ],
)
def test_addresses_are_kept_without_what_opens_them(text: str, kept: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["twofour", "bench", text])
    assert command_line() == ["twofour", "bench", kept]


@pytest.mark.parametrize("flag", [["--header", f"api-key={KEY}"], [f"--header=api-key={KEY}"]])
def test_a_command_is_kept_without_the_values_of_headers(flag: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["twofour", "bench", "run", *flag, "--header", "X=a=b", "--header-file", "a=b"])
    kept = command_line()
    assert KEY not in " ".join(kept)
    assert kept[-4:] == ["--header", "X=...", "--header-file", "a=b"] and "api-key=..." in kept[3] + kept[4]


def test_a_password_in_an_address_is_refused_and_not_quoted() -> None:
    with pytest.raises(InputError, match="user or a password") as caught:
        client.jobs(Service(f"http://me:{KEY}@h", "m"), [], "n")
    assert KEY not in str(caught.value)
