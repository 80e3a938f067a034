"""The session on a GPU without one: its mechanics with programs that stand for stages, and a rehearsal of the stages.

Not proven here: any figure, and what only a device refuses. The rehearsal runs every stage's own code with small sizes,
Triton's interpreter and a stand-in for cuSPARSELt.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from twofour.bench.gpu import __main__ as session
from twofour.bench.gpu import day, graphs, sheet, steps, table, tests
from twofour.bench.gpu.sheet import Sheet
from twofour.bench.targets.shapes import SHAPES
from twofour.prune.errors import InputError
from twofour.serve.engine.runners.graphs import Shape

ROOT = Path(__file__).parents[3]
STAND_INS = ROOT / "tests" / "helpers" / "gpu_stand_ins.py"
MADE_BY = {
    "device": "G",
    "cuda": None,
    "versions": dict.fromkeys(("torch", "triton", "transformers"), "1"),
    "code": "c",
}


def a_sheet(folder: Path, now: Callable[[], float] = lambda: 0.0, **changes: Any) -> Sheet:
    return Sheet(folder, "steps", {**MADE_BY, **changes.pop("made_by", {})}, 10.0, clock=now, **changes)


def kept(folder: Path, stage: str = "steps") -> dict[str, Any]:
    document: dict[str, Any] = json.loads((folder / f"gpu-{stage}.json").read_text())
    return document


def broken() -> dict[str, Any]:
    raise InputError("no kernel")


def test_a_row_is_in_the_file_before_the_next_is_measured(tmp_path: Path) -> None:
    made = a_sheet(tmp_path)
    made.cell({"a": 1}, lambda: {"s": 0.5})
    seen: list[Any] = []
    made.cell({"a": 2}, lambda: seen.append(kept(tmp_path)["rows"]) or {"s": 0.6})
    assert seen == [[{"a": 1, "s": 0.5}, {"a": 2, "failed": "the process died, or was ended, while this was measured"}]]
    assert kept(tmp_path)["rows"] == [{"a": 1, "s": 0.5}, {"a": 2, "s": 0.6}]


def test_what_raises_is_a_row_and_the_next_has_its_turn(tmp_path: Path) -> None:
    made = a_sheet(tmp_path)
    made.cell({"a": 1}, broken)
    made.cell({"a": 2}, lambda: {"s": 1.0})
    failed, good = kept(tmp_path)["rows"]
    assert failed["failed"] == "InputError: no kernel" and "broken" in "".join(failed["where"])
    assert good == {"a": 2, "s": 1.0}


def test_a_device_in_an_undefined_state_ends_the_stage_behind_its_row(tmp_path: Path) -> None:
    def lost() -> dict[str, Any]:
        raise torch.AcceleratorError("illegal address")

    with pytest.raises(torch.AcceleratorError):
        a_sheet(tmp_path).cell({"a": 1}, lost)
    calls: list[int] = []
    again = a_sheet(tmp_path, keep_failures=True)
    again.cell({"a": 1}, lambda: {"s": calls.append(1)})
    again.cell({"a": 2}, lambda: {"s": 1.0})
    assert not calls and [row.get("s") for row in again.rows] == [None, 1.0]


def test_nothing_is_begun_once_time_is_over(tmp_path: Path) -> None:
    now = [9.9]
    made = a_sheet(tmp_path, lambda: now[0])
    made.cell({"a": 1}, lambda: {"s": 1.0})
    now[0] = 10.0
    made.cell({"a": 2}, broken)
    assert len(made.rows) == 1 and kept(tmp_path)["left_for_want_of_time"] == [{"a": 2}]


@pytest.mark.parametrize(
    ("made_by", "measured"), [({}, [2]), ({"code": "d"}, [1, 2]), ({"device": "H"}, [1, 2]), ({"cuda": "13"}, [1, 2])]
)
def test_rows_of_the_same_code_on_the_same_device_are_not_measured_again(
    tmp_path: Path, made_by: dict[str, Any], measured: list[int]
) -> None:
    first, again = a_sheet(tmp_path), []
    first.cell({"a": 1}, lambda: {"s": 1.0})
    first.cell({"a": 2}, broken)
    second = a_sheet(tmp_path, made_by=made_by)
    for number in (1, 2):
        second.cell({"a": number}, lambda number=number: again.append(number) or {"s": 2.0})  # type: ignore[misc]
    assert again == measured and len(kept(tmp_path)["rows"]) == 2


def test_a_file_that_is_no_sheet_is_measured_anew(tmp_path: Path) -> None:
    (tmp_path / "gpu-steps.json").write_text("[1")
    assert a_sheet(tmp_path).rows == []


PROGRAM = """
import json, os, pathlib, signal, sys, time
stage, folder = sys.argv[1], pathlib.Path(sys.argv[sys.argv.index("--results") + 1])
with (folder / "starts").open("a") as log:
    log.write(stage + (" again" if "--keep-failures" in sys.argv else "") + chr(10))
{body}
"""


def run_session(tmp_path: Path, body: str, *words: str) -> tuple[int, list[str]]:
    program, results = tmp_path / "program.py", tmp_path / "results"
    program.write_text(PROGRAM.format(body=body))
    status = session.main(["--results", str(results), "--command", str(program), *words])
    return status, (results / "starts").read_text().splitlines()


def test_every_stage_is_started_in_its_order(tmp_path: Path) -> None:
    assert run_session(tmp_path, "") == (0, list(day.STAGES))


def test_a_stage_that_fails_or_dies_does_not_stop_the_next(tmp_path: Path) -> None:
    body = (
        "if stage == 'device': sys.exit(1)\n"
        "if stage == 'tests' and '--keep-failures' not in sys.argv: os.kill(os.getpid(), signal.SIGKILL)\n"
        "if stage == 'sweep': sys.exit(70)"
    )
    status, starts = run_session(tmp_path, body, "--stages", "device,tests,sweep,steps")
    assert starts == ["device", "tests", "tests again", "sweep", "sweep again", "sweep again", "steps"]
    assert status == session.FAILED


def test_a_stage_that_hangs_is_ended_and_one_without_time_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session, "STAGES", {"device": 0.5, "tests": 0.5, "steps": 60.0})
    monkeypatch.setattr(session, "GRACE_S", 0.5)
    status, starts = run_session(tmp_path, "if stage == 'device': time.sleep(600)", "--stages", "device,tests,steps")
    assert (status, starts) == (session.FAILED, ["device", "steps"])


def test_a_session_that_is_killed_ends_its_stage(tmp_path: Path) -> None:
    killing = "os.kill(os.getppid(), signal.SIGTERM); time.sleep(600)"
    with pytest.raises(SystemExit) as ended:
        run_session(tmp_path, f"(folder / 'pid').write_text(str(os.getpid())); {killing}", "--stages", "device,steps")
    assert ended.value.code == 128 + signal.SIGTERM
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "results" / "pid").read_text()), 0)


def test_the_whole_session_is_over_in_nine_minutes_with_at_most_eight_files() -> None:
    ends = list(day.STAGES.values())
    assert ends == sorted(ends) and ends[-1] + day.GRACE_S < 9 * 60
    assert len(day.STAGES) <= 8


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device_nothing_is_begun(tmp_path: Path) -> None:
    assert session.main(["--results", str(tmp_path / "results")]) == session.NOTHING_MEASURED
    assert not (tmp_path / "results").exists()


@pytest.fixture
def run_script() -> ModuleType:
    spec = spec_from_file_location("gpu_run", ROOT / "tests" / "gpu" / "run.py")
    assert spec and spec.loader
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_checkout_is_imported_without_being_installed(run_script: ModuleType) -> None:
    code = "import twofour.bench.gpu.day, twofour.cli; print(twofour.bench.__file__)"
    with run_script.package() as path:
        command = [sys.executable, "-P", "-c", code]
        found = subprocess.check_output(command, env={**os.environ, "PYTHONPATH": path}, text=True, cwd=path).strip()
        assert Path(found) == Path(path, "twofour", "bench", "__init__.py")
        assert Path(found).resolve() == ROOT / "bench" / "__init__.py"


def test_the_outcome_of_every_test_is_kept_by_file(tmp_path: Path) -> None:
    folder = tmp_path / "tests"
    folder.mkdir()
    marked = "import pytest\npytestmark = pytest.mark.gpu\n"
    (folder / "test_good.py").write_text(f"{marked}def test_a(): pass\ndef test_b(): pytest.skip('no device')\n")
    (folder / "test_bad.py").write_text(f"{marked}def test_c(): assert 1 == 2, 'wrong sum'\n")
    tests.run(folder, Sheet(tmp_path, "tests", MADE_BY, sys.float_info.max))
    bad, good = sorted(kept(tmp_path, "tests")["rows"], key=lambda row: str(row["file"]))
    assert (good["passed"], good["skipped"], good["failure"]) == (1, 1, 0) and "failed" not in good
    assert bad["failed"].startswith("1 of 1 tests: test_c: ") and "wrong sum" in bad["failed"]
    assert good["tests"]["test_b"]["why"] == "no device"


def test_every_sequence_of_a_full_step_has_blocks_of_its_own() -> None:
    chunks = graphs.full(Shape(4, 3))
    assert sorted(block for chunk in chunks for block in chunk.blocks) == list(range(12))
    assert all(chunk.start // day_block() + 1 == 3 for chunk in chunks)
    assert len({chunk.start for chunk in chunks}) == 4


def day_block() -> int:
    from twofour.bench.gpu.models import BLOCK

    return BLOCK


def test_a_prompt_is_read_in_chunks_of_the_budget_for_its_last_logits() -> None:
    class Noting:
        chunks: list[tuple[int, int, list[int]]]

        def forward(self, chunks: Any) -> torch.Tensor:
            (chunk,) = chunks
            self.chunks.append((chunk.start, len(chunk.tokens), list(chunk.wanted)))
            return torch.empty(0)

    runner = Noting()
    runner.chunks = []
    steps.prompt_step(runner, 40, 16)()
    assert runner.chunks == [(0, 16, []), (16, 16, []), (32, 8, [7])]


def test_the_matrices_of_a_block_and_those_of_fused_linears() -> None:
    found = day.matrices(SHAPES["llama-3.1-8b"])
    assert found["qkv as one"] == (6144, 4096) and found["gate and up as one"] == (28672, 4096)
    assert set(SHAPES["llama-3.1-8b"].linears()) == {found[name] for name in ("q, o", "k, v", "gate, up", "down")}


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage but the tests, in one process."""
    pytest.importorskip("triton", reason="triton is not installed (on Linux: pip install triton; no GPU is needed)")
    results = tmp_path_factory.mktemp("rehearsal")
    stages = [stage for stage in day.STAGES if stage != "tests"]
    command = [sys.executable, str(STAND_INS), str(results), *stages]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode in (0, session.FAILED), done.stderr[-3000:]
    return results


def test_every_stage_can_be_rehearsed(rehearsed: Path) -> None:
    """All cells of all stages were reached, and none failed but that of a program which may not be installed."""
    documents = {stage: kept(rehearsed, stage) for stage in day.STAGES if stage != "tests"}
    assert not [stage for stage, document in documents.items() if document["left_for_want_of_time"]]
    rows = [row for document in documents.values() for row in document["rows"]]
    failed = [row for row in rows if "failed" in row and row.get("what") != "compute-sanitizer"]
    assert not failed and all(document["kind"] == sheet.KIND for document in documents.values())
    products = [row for row in documents["products"]["rows"] if row["matrix"] == "q, o"]
    assert all(set(row["contenders"]) == set(CONTENDERS) for row in products)
    assert not [each for row in products for each in row["contenders"].values() if "failed" in each]
    assert {row["what"] for row in documents["steps"]["rows"]} == {"decode", "prompt", "profile", "sampling"}
    assert all(row["replayed"] and row["deviation"] < row["tolerance"] for row in documents["graphs"]["rows"])


CONTENDERS = (
    *("dense", "triton", "expand alone", "expand, then dense"),
    *("cusparselt, default", "cusparselt, searched", "served"),
)


def test_every_file_becomes_a_table(rehearsed: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from twofour import cli

    for stage in day.STAGES:
        if stage != "tests":
            assert cli.main(["bench", "report", str(rehearsed / f"gpu-{stage}.json")]) == 0
            assert capsys.readouterr().out.startswith(f"{stage}: on cpu, torch ")


def test_a_table_of_products_shows_ratios_and_who_is_missing_and_why() -> None:
    contenders = {"dense": {"median_s": 2e-5}, "triton": {"median_s": 1e-5}, "served": {"failed": "no compiler"}}
    row = {"model": "m", "matrix": "down", "rows": 4, "columns": 8, "tokens": 1, "contenders": contenders}
    document = {"stage": "products", "made_by": MADE_BY, "rows": [row], "left_for_want_of_time": [{"tokens": 2}]}
    lines = table.table(document).splitlines()
    assert lines[3].split() == ["tokens", "dense", "triton", "served"]
    assert lines[4].split() == ["1", "20.0", "10.0", "(2.00x)", "-"]
    assert "  served: no compiler" in lines and lines[-1] == "left for want of time: 1 cells"


def test_a_table_of_rows_has_units_and_ends_with_failures() -> None:
    rows = [{"what": "decode", "batch": 1, "device_s": 0.0125}, {"what": "decode", "batch": 2, "failed": "E: x"}]
    document = {"stage": "steps", "made_by": MADE_BY, "rows": rows, "left_for_want_of_time": []}
    lines = table.table(document).splitlines()
    assert lines[2].split() == ["what", "batch", "device_s", "[ms]"] and lines[3].split() == ["decode", "1", "12.500"]
    assert lines[-1] == "FAILED  what decode, batch 2: E: x"
