"""What passes around the steps, of logs made by hand; and a server that is really asked."""

from pathlib import Path

import pytest

from twofour.bench.capacity import loads, measure
from twofour.bench.capacity import profile as profiles
from twofour.bench.capacity.loads import Shape
from twofour.bench.capacity.profile import EngineLimits
from twofour.bench.commands import INVALID
from twofour.bench.load.records import Chunks, Record
from twofour.bench.load.step_log import Step
from twofour.bench.load.workload import Lengths
from twofour.bench.proof.batching import Steps
from twofour.bench.proof.mock import Script, serving
from twofour.cli import main

LIMITS = EngineLimits(64, 512, 1000, 16, 2048)
SHAPE = Shape(Lengths(100), Lengths(20))


def alone(index: int, sent_at: float, first_at: float, prompt: int, answer: int) -> Record:
    chunks = Chunks.of((first_at + i * 0.1, 1) for i in range(answer))
    return Record(index, sent_at, sent_at=sent_at, chunks=chunks, prompt_tokens=prompt, output_tokens=answer)


def test_what_passes_beside_the_steps_of_a_request_that_is_alone() -> None:
    log = [
        Step(8, 0, 0, 9.0, started_at=0.0),  # of the warm-up
        Step(64, 0, 0, 0.2, started_at=10.0),
        Step(36, 0, 0, 0.1, started_at=10.3),
        Step(0, 1, 101, 0.1, started_at=10.5),
        Step(65 - 1, 0, 0, 0.2, started_at=20.0),
        Step(0, 1, 65, 0.1, started_at=20.2),  # the last token of the prompt, alone
        Step(0, 1, 66, 0.1, started_at=20.4),
        Step(0, 1, 67, 0.1, started_at=20.6),
    ]
    records = [alone(0, 1.0, 1.5, 100, 2), alone(1, 11.0, 11.7, 65, 3)]
    assert measure.waited(records, log) == pytest.approx([0.7 - 0.3, 0.5 - 0.4])
    assert measure.waited(records, log[:-1]) == []  # they do not add up
    assert measure.between(log[1:4]) == pytest.approx([0.1, 0.1])


def test_the_ladder_ends_where_the_engine_or_its_cache_does() -> None:
    assert loads.ladder(LIMITS, SHAPE) == [2, 5, 11, 27, 64]
    assert loads.ladder(LIMITS, SHAPE, most=8)[-1] == 8
    assert loads.ladder(EngineLimits(64, 512, 30, 16, 2048), SHAPE)[-1] == 4  # 480 tokens, 120 each


def test_every_load_can_be_made() -> None:
    clients = loads.ladder(LIMITS, SHAPE)
    for name in loads.names(clients):
        schedule = loads.traffic(name, clients, LIMITS, SHAPE, 5.0, 10.0).schedule()
        assert (schedule.concurrency is None) == ("rate" in name) == (schedule.limits.duration_s is None)
        assert schedule.requests
        lengths = {request.prompt_tokens for request in schedule.requests}
        assert lengths == ({25, 100, 400} if name == loads.ALONE else {100})


GIVEN = [
    *("--max-num-seqs", "4", "--max-num-batched-tokens", "4096"),
    *("--kv-blocks", "1000", "--block-size", "16", "--context-length", "2048"),
]


def test_a_server_without_a_log_is_profiled_from_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(measure, "_LEAST_S", 0.15)
    out = tmp_path / "profile.json"
    with serving(Script(steps=Steps(0.001, 1e-6, 1e-4, sequences=4))) as mock:
        words = ["bench", "profile", mock.url, "--name", "mine", "--minutes", "0.001", "--out", str(out)]
        assert main([*words, *GIVEN, "--output-tokens", "8", "--prompt-tokens", "16"]) in (0, INVALID)
        assert main([*words[:-2], *GIVEN[2:]]) == 1
    told = capsys.readouterr()
    assert "give --max-num-seqs" in told.err and "mine: mock" in told.out
    found = profiles.read(out)
    assert (found.source, found.replica.limits) == ("client", EngineLimits(4, 4096, 1000, 16, 2048))
    assert found.hull.largest[0] <= 4 and found.replica.steps.fixed_s > 0 and len(found.draws) > 1
    assert found.failed == [] or not found.valid
    assert main(["bench", "report", str(out)]) == 0
    assert "the client's view alone" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["--minutes", "0"], ["--most-at-once", "0"], ["--block-size", "-1"]])
def test_what_measures_nothing_is_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", "profile", "http://127.0.0.1:9", *words]) == 1
    assert words[0] in capsys.readouterr().err
