"""A scripted engine says what its prompts say; an answer that is not whole is refused; the verb, on a tiny model."""

import json
import socket
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from twofour import cli
from twofour.bench.engine import scripted_engine
from twofour.bench.engine.http_layer import CELLS, Cell, Lap, _events, document, table
from twofour.bench.engine.scripted_engine import Script
from twofour.bench.load.decode import Exchange
from twofour.prune.errors import ServerError
from twofour.serve.engine.messages import Cancel, decode_report, decode_start, encode, encode_command
from twofour.serve.engine.types import EngineConfig, EngineInfo, Finish, Piece, Prompt, Sampling


def prompt(id: str, *tokens: int, wanted: int) -> Prompt:
    return Prompt(id, tokens, Sampling(wanted))


def run_out(script: Script) -> list[Piece]:
    pieces: list[Piece] = []
    while script.busy:
        pieces += script.step()
    return pieces


def test_each_gets_its_own_tokens_over_and_over_one_a_step() -> None:
    script = Script(max_num_seqs=2)
    for one in (prompt("a", 5, 6, wanted=3), prompt("b", 7, wanted=1), prompt("c", 8, wanted=2)):
        assert script.obey(one) is None
    assert [piece.id for piece in script.step()] == ["a", "b"] and script.stats().waiting == 1
    pieces = run_out(script)
    assert [(p.tokens, p.finish) for p in pieces if p.id == "a"] == [((6,), None), ((5,), Finish.LENGTH)]
    assert [(p.tokens, p.finish) for p in pieces if p.id == "c"] == [((8,), None), ((8,), Finish.LENGTH)]
    assert script.stats().running == script.stats().waiting == 0


def test_who_is_cancelled_ends_waiting_or_running() -> None:
    script = Script(max_num_seqs=1)
    for id in ("a", "b", "c"):
        script.obey(prompt(id, 5, wanted=2))
    script.step()
    assert [script.obey(Cancel(id)) for id in ("a", "c")] == [Piece(id, finish=Finish.ABORT) for id in ("a", "c")]
    assert script.obey(Cancel("a")) is None
    assert [piece.id for piece in run_out(script)] == ["b", "b"]


def test_it_speaks_the_protocol(tiny_model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a thread, on a socket pair as `ProcessEngine` gives it."""
    here, there = socket.socketpair()
    monkeypatch.setattr(scripted_engine.sys, "argv", ["engine", str(there.detach())])
    monkeypatch.setattr(scripted_engine.child, "ignore_signals", lambda: None)
    thread = Thread(target=scripted_engine.main)
    thread.start()
    with Connection(here.detach()) as pipe:
        pipe.send_bytes(encode(EngineConfig(str(tiny_model_folder), max_num_seqs=3)))
        info = decode_start(pipe.recv_bytes())
        assert isinstance(info, EngineInfo) and (info.vocab_size, info.context_length) == (320, 1024)
        assert info.kv_tokens == 3 * 1024
        pipe.send_bytes(encode_command(prompt("a", 5, 6, wanted=3)))
        pieces: list[Piece] = []
        while not any(piece.finish for piece in pieces):
            pieces += decode_report(pipe.recv_bytes()).pieces
        pipe.send_bytes(encode_command(None))
    thread.join()
    assert [piece.tokens for piece in pieces] == [(5,), (6,), (5,)]


WHOLE, STREAM = Cell(False, 1, 1), Cell(True, 2, 1)
USAGE = {"usage": {"completion_tokens": 2}}


def answered(body: bytes, status: int = 200, error: str | None = None) -> Exchange:
    return Exchange(0, status=status, error=error, reads=[(0.0, body[:7]), (0.1, body[7:])])


def streamed(*documents: dict[str, Any], end: bytes = b"data: [DONE]\n\n") -> bytes:
    return b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in documents) + end


def test_the_events_of_an_answer() -> None:
    assert _events(answered(streamed({}, {}, USAGE)), STREAM) == 3
    assert _events(answered(json.dumps({"usage": {"completion_tokens": 1}}).encode()), WHOLE) == 0


@pytest.mark.parametrize(
    "exchange",
    [
        answered(b'{"error": {}}', status=503),
        answered(b"", error="reset: gone"),
        answered(streamed({}, {"usage": {"completion_tokens": 1}})),
        answered(streamed(USAGE, USAGE, end=b"")),
    ],
    ids=["refused", "cut", "too short", "without an end"],
)
def test_an_answer_that_is_not_whole_is_not_counted(exchange: Exchange) -> None:
    with pytest.raises(ServerError, match=r"scripted_server"):
        _events(exchange, STREAM if exchange.status == 200 else WHOLE)


def test_the_document_gives_the_median_and_the_range_over_rounds() -> None:
    laps = [Lap(n, 3 * n, 2.0, tuple(i / n for i in range(1, n + 1)), None) for n in (10, 40, 20)]
    found = document({STREAM: laps}, "m", 2.0)
    assert found["schema_version"] == 1
    cell = found["cells"][0]
    assert (cell["requests"], cell["requests_per_s"]["rounds"]) == (70, [5.0, 20.0, 10.0])
    assert [cell["events_per_s"][key] for key in ("median", "low", "high")] == [30.0, 15.0, 60.0]
    assert (cell["p50_s"]["median"], cell["p95_s"]["rounds"]) == (0.5, [1.0, 0.95, 0.95])
    assert cell["server_cpu_s_per_request"] is None
    assert "10 [5, 20]" in table(found) and "30 [15, 60]" in table(found)


@pytest.mark.slow
def test_the_verb(roomy_model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "http.json"
    options = ["--rounds", "1", "--seconds", "0.2", "--json", "--out", str(out)]
    assert cli.main(["bench", "http", str(roomy_model_folder), *options]) == 0
    found = json.loads(capsys.readouterr().out)
    assert json.loads(out.read_text()) == found
    assert [(c["stream"], c["tokens"], c["concurrency"]) for c in found["cells"]] == [
        (c.stream, c.tokens, c.concurrency) for c in CELLS
    ]
    for cell in found["cells"]:
        assert cell["requests"] >= cell["concurrency"] and cell["p95_s"]["median"] >= cell["p50_s"]["median"] > 0
    assert found["versions"]["uvicorn"] and found["hardware"]["cpus"] >= 1


@pytest.mark.parametrize("option", ["--rounds", "--seconds"])
def test_a_bad_number_is_refused(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "http", "m", option, "0"]) == 1
    assert f"{option} is 0" in capsys.readouterr().err
