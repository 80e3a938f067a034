import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from twofour.bench.capacity import profile
from twofour.bench.capacity.hull import around
from twofour.bench.capacity.profile import Around, EngineLimits, Profile, Replica
from twofour.bench.capacity.step_model import StepModel
from twofour.bench.capacity.validation import Foretold, as_asked, document, fresh, utilisation, validate
from twofour.bench.capacity.validation_table import table
from twofour.bench.load import metrics
from twofour.bench.load import run as load
from twofour.bench.load.run import Run
from twofour.bench.load.service import Service
from twofour.bench.load.workload import Lengths, Schedule, synthetic
from twofour.bench.proof import paged_fleet
from twofour.bench.proof.mock import Script, serving
from twofour.bench.proof.paged import Machine
from twofour.bench.traffic.lengths import Pause
from twofour.bench.traffic.traffic import Rate, Traffic
from twofour.cli import main
from twofour.prune.errors import InputError

MACHINE = Machine(0.008, 30e-6, 60e-6, 6e-8, 1e-8, noise=0.02)
TRUE = StepModel(0.008, 30e-6, 60e-6, 6e-8, 1e-8)
LIMITS = EngineLimits(32, 512, 4096, 16, 1 << 20)
HULL = around([32], [512], [40_000])
PROFILE = Profile("a", "mock", Replica(LIMITS, TRUE, Around(0.0, 0.0)), HULL)


def load_at(rate: float, requests: int = 400) -> Schedule:
    return synthetic(requests, Lengths(200, 0.3), Lengths(40, 0.3), 3, rate=rate)


def measured(schedule: Schedule, machine: Machine = MACHINE) -> Run:
    """A run on the mock's engine, without any time passing."""
    records = paged_fleet.serve(schedule.requests, machine).records
    summary = metrics.summarise(records, 0.0)
    return Run(Service("http://mock", "mock"), schedule, "nonce", datetime.now(UTC), 0.0, records, summary, [])


def errors(run: Run, of: Profile = PROFILE) -> dict[str, float]:
    found = validate(of, run, "run", worlds=3).figures
    return {each.name: each.matched.error(each.measured) or 0.0 for each in found}


def test_who_knows_all_is_not_wrong() -> None:
    quiet = measured(load_at(35.0), replace(MACHINE, noise=0.0))
    assert all(abs(error) < 1e-9 for error in errors(quiet).values())


def test_a_wrong_coefficient_is_found_out() -> None:
    slow = replace(PROFILE, replica=replace(PROFILE.replica, steps=replace(TRUE, fixed_s=0.0088)))
    found = errors(measured(load_at(20.0)), slow)
    assert 0.05 < found["tpot_p50"] < 0.15
    assert found["ttft_p95"] > 0.03


def test_fresh_requests_are_like_the_old_ones_and_are_others() -> None:
    old = load_at(30.0, 4000)
    one, other = fresh(old, 0), fresh(old, 1)
    assert fresh(old, 0) == one
    assert one.requests != other.requests
    for new in (one, other):
        assert len(new.requests) == 4000
        assert new.requests[-1].at_s == pytest.approx(4000 / 30, rel=0.06)
        means = [sum(each.output_tokens for each in load.requests) / 4000 for load in (old, new)]
        assert means[1] == pytest.approx(means[0], rel=0.03)


def test_even_arrivals_stay_even() -> None:
    even = replace(load_at(10.0), made_of={"rate": 10.0, "arrivals": "constant"})
    times = [request.at_s for request in fresh(even, 5).requests]
    assert times == pytest.approx([0.1 * (i + 1) for i in range(400)])


def test_utilisation_is_the_share_of_what_a_server_gets_done() -> None:
    most = paged_fleet.capacity(load_at(1.0, 800).requests, MACHINE)
    found = utilisation(PROFILE.replica, load_at(0.7 * most, 800))
    assert found == pytest.approx(0.7, rel=0.03)


def test_utilisation_of_a_ramp_is_that_of_its_mean() -> None:
    """From 0.4 to 0.8 of capacity: 0.6, as long as each rate lasts as long as any other."""
    most = paged_fleet.capacity(load_at(1.0, 800).requests, MACHINE)
    rate = Rate(0.4 * most, to_per_s=0.8 * most)
    ramp = Traffic(prompt_tokens=Lengths(200, 0.3), output_tokens=Lengths(40, 0.3), rate=rate)
    asked = replace(ramp, limits=replace(ramp.limits, duration_s=800 / most), requests=None).sketch()
    assert utilisation(PROFILE.replica, asked) == pytest.approx(0.6, rel=0.1)


def test_utilisation_of_sessions_counts_each_turn() -> None:
    one = Traffic(requests=600, prompt_tokens=Lengths(60), output_tokens=Lengths(40), rate=Rate(6.0))
    several = replace(one, turns=Lengths(3), think=Pause(2.0))
    alone, found = (utilisation(PROFILE.replica, each.sketch()) for each in (one, several))
    assert alone and found and 3 < found / alone < 6
    # What a server gets done is no matter of how long its clients think.
    assert utilisation(PROFILE.replica, replace(several, think=Pause(30.0)).sketch()) == found


def test_times_of_a_trace_are_not_drawn_anew() -> None:
    traced = replace(load_at(20.0), made_of={"rate": None, "trace": "a.jsonl"})
    assert all(each.forecast is None for each in validate(PROFILE, measured(traced), "run", worlds=2).figures)


def test_what_was_not_measured_is_said() -> None:
    small = replace(PROFILE, hull=around([4], [512], [40_000]))
    found = validate(small, measured(load_at(30.0)), "run", worlds=2)
    assert len(found.beyond) == 1
    assert found.beyond[0].endswith("sequences at a time, and 4 were measured")
    told = document(small, [found])
    assert told["counted"] == 0
    assert told["errors"]["matched"]["ttft_p95"] == {"runs": 0, "mean": None, "max": None, "held": 0}
    assert "EXTRAPOLATED" in table(told)


def test_lengths_are_those_that_the_server_counted() -> None:
    run = measured(load_at(20.0, 20))
    for record in run.records:
        record.prompt_tokens = (record.prompt_tokens or 0) + 7
    run.records[3].error = "HTTP 500: gone"
    asked = as_asked(run).requests
    assert [each.index for each in asked] == [i for i in range(20) if i != 3]
    assert asked[0].prompt_tokens == (run.schedule.requests[0].prompt_tokens or 0) + 7


def test_runs_that_do_not_say_what_was_shared_are_refused() -> None:
    run = measured(load_at(20.0, 8))
    bare = [replace(request, prompt="") for request in run.schedule.requests]
    lost = replace(run, schedule=replace(run.schedule, requests=bare, made_of={"turns": "3"}))
    with pytest.raises(InputError, match="begin alike"):
        as_asked(lost)
    for record in run.records:
        record.error = "HTTP 500: gone"
    with pytest.raises(InputError, match="ended well"):
        as_asked(run)


def test_an_interval_holds_its_ends() -> None:
    found = Foretold(1.0, 0.9, 1.2)
    assert [found.holds(value) for value in (0.89, 0.9, 1.2, 1.21, None)] == [False, True, True, False, None]
    assert found.error(0.8) == pytest.approx(0.25)
    assert Foretold(None, None, None).holds(1.0) is None


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    run, kept = tmp_path / "run.json", tmp_path / "profile.json"
    run.write_text(json.dumps(load.document(measured(load_at(25.0, 150)), with_records=True)))
    kept.write_text(json.dumps(profile.document(PROFILE, {})))
    return kept, run


def test_files_are_compared_and_the_document_is_kept(
    files: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept, run = files
    out = tmp_path / "found.json"
    assert main(["plan-validate", str(run), "--profile", str(kept), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"{run}: 150 requests, 25 requests/s" in printed
    found = json.loads(out.read_text())
    assert (found["kind"], found["counted"], found["valid"]) == ("twofour.bench.validation", 1, True)
    assert found["errors"]["matched"]["itl_p95"]["max"] < 0.1
    assert main(["bench", "report", str(out)]) == 0
    assert capsys.readouterr().out == printed


def test_wrong_files_are_named(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    kept, run = files
    assert main(["plan-validate", "--profile", str(kept)]) == 1
    assert main(["plan-validate", str(kept), "--profile", str(kept)]) == 1
    assert main(["plan-validate", str(run), "--profile", str(run)]) == 1
    said = capsys.readouterr().err
    assert "no run to compare with" in said
    assert f"{kept} is a twofour.bench.profile" in said
    assert f"{run} is a twofour.bench.run, no profile" in said


def test_a_load_is_measured_there_and_then(files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    with serving(Script(machine=Machine(0.002, 1e-6, 1e-5))) as mock:
        words = ["plan-validate", "--profile", str(files[0]), "--url", mock.url, "--rate", "40", "--requests", "12"]
        assert main([*words, "--json"]) in (0, 3)  # a busy machine fails a gate
    found = json.loads(capsys.readouterr().out)
    assert found["runs"][0]["requests"] == 12
    assert found["runs"][0]["figures"][0]["measured"] > 0
