import json
import sys
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twofour.bench.capacity import hull
from twofour.bench.capacity.profile import Around, EngineLimits, Profile, Replica
from twofour.bench.capacity.simulate import simulate
from twofour.bench.capacity.step_model import StepModel
from twofour.bench.load.records import Record, Request
from twofour.bench.load.slo import parse
from twofour.bench.load.step_log import Glance, Step
from twofour.bench.load.workload import Schedule
from twofour.bench.proof import paged_fleet, plan_measured, plan_proof, plan_simulated
from twofour.bench.proof.paged import Machine
from twofour.bench.proof.plan_measured import Served
from twofour.bench.proof.plan_proof import Part
from twofour.bench.proof.plan_proof_table import PARTS, table
from twofour.bench.proof.proof import Row
from twofour.cli import main
from twofour.prune.errors import InputError
from twofour.prune.progress import silent

ASKED = st.lists(st.tuples(st.floats(0, 0.3), st.integers(2, 60), st.integers(1, 20)), min_size=1, max_size=20)


def times(records: list[Record]) -> dict[int, list[float]]:
    return {record.index: [chunk.at for chunk in record.chunks] for record in records}


@settings(deadline=None)
@given(ASKED, st.integers(1, 3), st.integers(20, 60))
def test_two_engines_that_share_no_code_give_the_same_times(
    asked: list[tuple[float, int, int]], servers: int, pages: int
) -> None:
    """Preemptions among them, as 20 pages of four tokens are few."""
    machine = Machine(0.008, 3e-5, 6e-5, 6e-6, 1e-6, sequences=6, tokens=32, pages=pages, page=4)
    steps = StepModel(machine.fixed_s, machine.prefill_s, machine.decode_s, machine.kv_s, machine.pair_s)
    replica = Replica(EngineLimits(6, 32, pages, 4, 1000), steps, Around(0.0, 0.0))
    requests = [Request(i, at, "", prompt, output) for i, (at, prompt, output) in enumerate(sorted(asked))]
    true = times(paged_fleet.serve(requests, machine, servers).records)
    told = times(simulate(Schedule(requests, None, {}), replica, servers))
    assert told.keys() == true.keys()
    for index, at in true.items():
        assert told[index] == pytest.approx(at, abs=1e-9)


def test_a_fleet_that_is_planned_is_the_one_that_is_needed() -> None:
    of = plan_simulated.case(4, round_promise=False)
    exact = Replica(
        EngineLimits(of.machine.sequences, of.machine.tokens, of.machine.pages, of.machine.page, 65536),
        StepModel(*(of.machine.fixed_s, of.machine.prefill_s, of.machine.decode_s, of.machine.kv_s, of.machine.pair_s)),
        Around(0.0, 0.0),
    )
    quiet = replace(of, machine=replace(of.machine, noise=0.0))
    assert plan_simulated.planned(quiet, exact) == plan_simulated.needed(quiet)


def test_a_promise_in_round_numbers_is_the_next_above_what_is_kept() -> None:
    edge, said = plan_simulated.case(0, round_promise=False), plan_simulated.case(0)
    for kept, promised in zip(edge.slo.terms, said.slo.terms, strict=True):
        digits = f"{1000 * promised.limit_s:.6g}".rstrip("0.")
        assert len(digits) == 1 and kept.limit_s < promised.limit_s <= 2 * kept.limit_s
    assert replace(edge, slo=said.slo) == said


def test_a_fleet_that_gets_more_than_it_gets_done_keeps_no_promise() -> None:
    of = plan_simulated.case(4)
    peak, seed = of.demand.peak, of.demand.traffic.seed
    most = paged_fleet.capacity(of.demand.schedule(peak, 4000, seed).requests, of.machine)
    assert plan_simulated.needed(replace(of, slo=parse("ttft_p95=1000s"))) == ceil(peak / most) > 1


def test_a_profile_from_steps_has_what_the_machine_has() -> None:
    of = plan_simulated.case(0)
    found = plan_simulated.profile(of.machine, of.demand.traffic).replica.steps
    assert found.fixed_s == pytest.approx(of.machine.fixed_s, rel=0.03)
    assert found.prefill_s == pytest.approx(of.machine.prefill_s, rel=0.05)


def test_a_forecast_is_compared_with_a_long_run_that_it_has_not_seen() -> None:
    off = plan_simulated.forecasts(1, 800, silent)
    assert {name: len(errors) for name, errors in off.items()} == dict.fromkeys(plan_simulated.P95, 3)
    assert 0 < max(off["itl_p95"]) < 0.1


def validation(errors: list[float | None]) -> dict[str, Any]:
    runs = [
        {
            "name": f"mock at {i}/s",
            "utilisation": 0.5,
            "beyond": [],
            "valid": True,
            "figures": [
                {"name": "ttft_p95", "measured": 0.1, "matched": {"error": error}, "forecast": None},
                {"name": "itl_p95", "measured": 0.02, "matched": {"error": 0.01}, "forecast": None},
            ],
        }
        for i, error in enumerate(errors)
    ]
    return {"runs": runs}


def test_errors_are_summed_up_by_their_size() -> None:
    mean, most = plan_proof._errors("P1", "mock", validation([0.04, -0.12, None]), "matched", ("ttft_p95",), 0.05, 0.1)
    assert (mean.value, mean.passed, mean.note) == (pytest.approx(0.08), False, "1 of 3 runs told nothing")
    assert (most.value, most.passed) == (0.12, False)
    (nothing,) = plan_proof._errors("P2", "mock", validation([0.1]), "forecast", ("ttft_p95",), 0.05, None)
    assert (nothing.value, nothing.passed) == (None, None)


def test_where_nothing_is_known_no_fleet_is_exact() -> None:
    row = plan_proof._exact("a promise", [(2, 2, 2), (3, 4, 5), (None, None, None), (None, 5, 5)])
    told = "with other luck in its steps the engine: 2; planned for needed: 3 for 4, None for None, None for 5"
    assert (row.value, row.note) == (0.25, told)


def test_loads_of_a_server_are_shares_of_what_it_gets_done() -> None:
    """And not of a bound above that: at its share of capacity, a server is busy for about so much of the time."""
    machine = plan_measured.MACHINE
    steps = StepModel(machine.fixed_s, machine.prefill_s, machine.decode_s, machine.kv_s, machine.pair_s)
    limits = EngineLimits(machine.sequences, machine.tokens, machine.pages, machine.page, 65536)
    known = profile(steps, limits)
    most = paged_fleet.capacity(plan_simulated.schedule(plan_measured.SERVED, 1.0, 1000), replace(machine, noise=0.0))
    assert [rate / most for rate in plan_measured.rates(known)] == pytest.approx(plan_measured.UNSEEN_SERVED, rel=0.03)


def profile(steps: StepModel, limits: EngineLimits) -> Profile:
    return Profile("a", "m", Replica(limits, steps, Around(0.0, 0.0)), hull.around([1], [1], [1]), draws=[steps])


def test_the_pace_of_a_run_is_that_of_its_steps() -> None:
    """Of those that came between two looks alone."""
    known = profile(StepModel(0.01, 0.001, 0.0, 0.0), EngineLimits(8, 64, 100, 16, 512))
    old, new = Step(10, 0, 0, 9.0), [Step(10, 0, 0, 0.024), Step(20, 0, 0, 0.026)]  # 0.02 and 0.03 by the profile
    before, after = Glance(1, [old]), Glance(3, [old, *new])
    assert plan_measured.pace(known, before, after) == pytest.approx(1.0)
    assert plan_measured.pace(known, before, Glance(2, [old, new[0]])) == pytest.approx(1.2)
    assert plan_measured.pace(known, None, after) is None is plan_measured.pace(known, after, after)
    slower = plan_measured._slower(known, 1.2)
    assert plan_measured.pace(slower, before, Glance(2, [old, new[0]])) == pytest.approx(1.0)
    assert slower.draws == [slower.replica.steps]


def test_a_row_at_the_pace_of_the_runs_says_the_pace() -> None:
    found = Served(validation([0.3]), validation([0.1, -0.02]), [0.9, 1.04])
    first, second = plan_proof._at_pace("twofour, dense", found)
    assert first.value == pytest.approx(0.06) and second.what.endswith("itl p95, same requests, mean")
    assert first.note == "steps of the runs took 0.90, 1.04 of what the profile says of them"
    assert list(plan_proof._at_pace("vLLM", Served(validation([0.3]), validation([]), []))) == []


def test_what_was_not_measured_and_where_is_said(tmp_path: Path) -> None:
    rows = [Row("P3", "a", None, 0.1, "share"), Row("P3", "b", 0.05, 0.1, "share")]
    kept = plan_proof._with(plan_proof._before(tmp_path / "none"), "P3", Part(rows, []), about("one CPU"))
    kept = plan_proof._with(kept, "P5", Part(rows[1:], []), about("another"))
    said = table(kept)
    assert said.splitlines()[:2] == ["on: one CPU (P3)", "on: another (P5)"]
    assert said.endswith("PASSED, but not measured: P1, P2, P3 (1 of 2 rows), P3v, P4, P4f, P6")
    for name in PARTS:
        kept = plan_proof._with(kept, name, Part(rows[1:], []), about("another"))
    assert table(kept).endswith("\nPASSED")
    del kept["parts"]["P5"]["hardware"]
    assert table(kept).startswith("on: another (P1, P2, P3, P3v, P4, P4f, P5, P6)\n")
    wrong = plan_proof._with(kept, "P3", Part([Row("P3", "b", 0.2, 0.1, "share"), rows[0]], []), about("another"))
    assert table(wrong).endswith("FAILED, and not measured: P3 (1 of 2 rows)")


def about(summary: str) -> dict[str, Any]:
    return {"started": "2026-01-01T00:00:00+00:00", "hardware": {"summary": summary}}


def test_parts_that_are_not_measured_now_are_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out, values = tmp_path / "found.json", iter([0.2, 0.01])
    measured = {
        "P1": lambda *_: Part([Row("P1", "first", next(values), 0.05, "share")], [validation([0.04])]),
        "P5": lambda *_: Part([Row("P5", "second", 1.0, 3, "s", note="a note")], []),
    }
    monkeypatch.setattr(plan_proof, "PARTS", measured)

    def run(only: str) -> int:
        monkeypatch.setattr(sys, "argv", ["plan_proof", "--only", only, "--out", str(out)])
        return plan_proof.main()

    assert run("P1") == 3  # a promise is not kept
    assert run("P5") == 3
    kept = json.loads(out.read_text())
    assert [row["value"] for part in kept["parts"].values() for row in part["rows"]] == [0.2, 1.0]
    assert run("P1") == 0
    capsys.readouterr()
    assert main(["bench", "report", str(out)]) == 0
    printed = capsys.readouterr().out
    assert printed.strip() == table(json.loads(out.read_text()))
    assert "a note" in printed
    assert "mock at 0/s, 50% of capacity: TTFT P95 100.0 ms (+4.0%)" in printed
    with pytest.raises(InputError, match="P9 is no part"):
        run("P9")
