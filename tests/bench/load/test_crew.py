"""Several processes send what one would: to a real server, and divided by hand."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from twofour.bench.load import crew
from twofour.bench.load.crew import Sight, divided, together
from twofour.bench.load.pace import Job
from twofour.bench.load.records import Request
from twofour.bench.load.run import CutOff, measure
from twofour.bench.load.service import Service
from twofour.bench.load.workload import Lengths, Limits, synthetic
from twofour.bench.proof.mock import Mock, Script, serving
from twofour.cli import main
from twofour.prune.errors import ServerError
from twofour.prune.machine import processors
from twofour.prune.progress import Step

SIZES = Lengths(8), Lengths(4)


def load(mock: Mock, workers: int, **pace: Any) -> Any:
    return measure(Service(mock.url, "mock"), synthetic(24, *SIZES, 1, **pace), workers=workers)


@pytest.mark.parametrize("pace", [{"concurrency": 5}, {"rate": 60.0}])
def test_every_request_is_sent_once_and_heard(pace: dict[str, Any]) -> None:
    with serving(Script(token_s=0.005)) as mock:
        run = load(mock, 2, **pace)
    assert sorted(record.index for record in run.records) == list(range(24))
    assert [(record.error, len(record.chunks)) for record in run.records] == [(None, 4)] * 24
    prompts = [served.prompt for served in mock.served]
    assert len(set(prompts)) == len(prompts) == 24 + (6 if "concurrency" in pace else 5)  # and the warm-up
    assert run.workers == 2 and run.summary.completed == 24
    assert any(gate.name == "loop_lag_p99" and gate.value is not None for gate in run.gates)


def test_no_more_are_under_way_than_one_client_would_have() -> None:
    with serving(Script(first_token_s=0.02)) as mock:
        run = load(mock, 3, concurrency=5)
    changes = [(record.scheduled_at, 1) for record in run.records] + [(r.done_at or 0.0, -1) for r in run.records]
    level, most = 0, 0
    for _, change in sorted(changes):
        level += change
        most = max(most, level)
    assert 3 <= most <= 5


def test_an_interrupt_reaches_all_workers_and_what_was_measured_is_kept() -> None:
    def interrupt(step: Step) -> None:
        if step.stage == "load":
            os.kill(os.getpid(), signal.SIGINT)

    with serving(Script(token_s=0.4)) as mock, pytest.raises(CutOff) as caught:
        measure(Service(mock.url, "mock"), synthetic(12, *SIZES, 1, concurrency=2), progress=interrupt, workers=2)
    run = caught.value.run
    assert run.cut_off and not run.valid
    assert {record.error for record in run.records} <= {None, "cut off: the run was interrupted"}
    assert any(record.error for record in run.records) and len(run.records) < 12


def test_a_worker_that_dies_is_named() -> None:
    with serving(Script()) as mock, crew.connected(Service(mock.url, "mock"), 2) as session:
        assert isinstance(session, crew.Crew)
        for pipe in session._pipes:
            pipe.send("no part")  # which ends it with a traceback
        with pytest.raises(ServerError, match="a client process has died"):
            session.send([Job(Request(0, 0.0, "a", 1, 1), b"")], 1)


def test_the_verb_says_how_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(processors, "usable_cpus", lambda: [0, 1])  # on one, too
    out = tmp_path / "run.json"
    with serving(Script(token_s=0.002)) as mock:
        words = ["bench", "run", mock.url, "--requests", "8", "--prompt-tokens", "8", "--output-tokens", "4"]
        main([*words, "--workers", "2", "--out", str(out)])
        assert main([*words, "--workers", "0"]) == 1
    assert "--workers is at least 1" in capsys.readouterr().err
    document = json.loads(out.read_text())
    assert (document["workers"], document["summary"]["completed"]) == (2, 8)


JOBS = st.lists(st.booleans(), max_size=20).map(
    lambda goes_on: [
        Job(Request(at, 0.0, "a", 1, 1, after=at - 1 if more and at else None), b"") for at, more in enumerate(goes_on)
    ]
)


@given(JOBS, st.integers(1, 6), st.one_of(st.none(), st.integers(1, 9)), st.one_of(st.none(), st.integers(1, 9)))
def test_parts_make_up_the_load(jobs: list[Job], workers: int, concurrency: int | None, most: int | None) -> None:
    parts = divided(jobs, concurrency, Limits(max_in_flight=most), workers)
    assert sorted(job.request.index for part in parts for job in part.jobs) == list(range(len(jobs)))
    assert len(parts) <= workers and all(part.jobs for part in parts)
    for part in parts:
        indices = {job.request.index for job in part.jobs}
        assert all(job.request.after is None or job.request.after in indices for job in part.jobs)
    if concurrency is not None:
        assert all(part.concurrency for part in parts) and sum(p.concurrency or 0 for p in parts) <= concurrency
    if most is not None:
        assert all(part.limits.max_in_flight for part in parts)
        assert sum(part.limits.max_in_flight or 0 for part in parts) <= most


def test_sights_add_up() -> None:
    seen = together([Sight([1, 3], 4, 1, 10), Sight([2], 5, 0, 20)])
    assert ([*seen.under_way], seen.ended, seen.failed, seen.pieces) == ([1, 3, 2], 9, 1, 30)
    assert together([]).ended == 0
