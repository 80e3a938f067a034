"""The mechanics of `make gpu` without a GPU: the layout, the steps, their limits, what is kept, the exit status."""

import json
import os
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import pytest

NO_DEVICE = 'print(\'{"gpu": null, "torch": "2", "triton": null}\')'
A_DEVICE = 'print(\'{"gpu": "G", "torch": "2", "triton": "3"}\')'
JUNIT = (
    '<testsuite><testcase classname="t" name="a"/><testcase classname="t" name="b"><failure/></testcase></testsuite>'
)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The script, its results in a folder of the test."""
    spec = spec_from_file_location("gpu_run", Path(__file__).with_name("run.py"))
    assert spec and spec.loader
    module = module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_run", module)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "RESULTS", tmp_path / "results")
    return module


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_the_checkout_is_imported_without_being_installed(gpu: ModuleType) -> None:
    code = "import twofour.bench, twofour.prune.errors, twofour.serve.cli; print(twofour.bench.__file__)"
    with gpu.package() as path:
        environment = {**os.environ, "PYTHONPATH": path}
        found = subprocess.check_output(python(code), env=environment, text=True, cwd=path).strip()
        assert Path(found) == Path(path, "twofour", "bench", "__init__.py")
        assert Path(found).resolve() == gpu.ROOT / "bench" / "__init__.py"


def test_a_step_has_a_status_or_ran_past_its_limit(gpu: ModuleType) -> None:
    assert gpu.run("s", python("exit(3)"), 60, dict(os.environ)).status == 3
    assert gpu.run("s", python("import time; time.sleep(60)"), 0.2, dict(os.environ)).status is None


@pytest.mark.parametrize(("tests_status", "status"), [(0, 3), (1, 1)])
def test_without_a_device_nothing_is_written(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, tests_status: int, status: int
) -> None:
    monkeypatch.setattr(gpu, "PROBE", NO_DEVICE)
    monkeypatch.setattr(gpu, "test_command", lambda junit: python(f"exit({tests_status})"))
    assert gpu.main() == status
    assert not gpu.RESULTS.exists()


@pytest.mark.parametrize(("bench_status", "status"), [(0, 0), (4, 1)])
def test_the_steps_run_one_after_the_other_and_are_kept(
    gpu: ModuleType, monkeypatch: pytest.MonkeyPatch, bench_status: int, status: int
) -> None:
    writing = "from pathlib import Path; Path({!r}).write_text({!r}); exit({})"
    monkeypatch.setattr(gpu, "PROBE", A_DEVICE)
    monkeypatch.setattr(gpu, "test_command", lambda junit: python(writing.format(str(junit), JUNIT, 0)))
    monkeypatch.setattr(gpu, "bench_command", lambda out: python(writing.format(str(out), "{}", bench_status)))
    assert gpu.main() == status
    kept = json.loads((gpu.RESULTS / "gpu.json").read_text())
    assert [(step["name"], step["status"]) for step in kept["steps"]] == [("tests", 0), ("bench kernels", bench_status)]
    assert kept["device"]["gpu"] == "G" and kept["tests"] == {"t::a": "passed", "t::b": "failure"}
    assert (gpu.RESULTS / "kernels-cuda.json").read_text() == "{}"


def test_a_step_that_fails_does_not_stop_the_next(gpu: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "PROBE", A_DEVICE)
    monkeypatch.setattr(gpu, "test_command", lambda junit: python("exit(1)"))
    monkeypatch.setattr(gpu, "bench_command", lambda out: python("exit(0)"))
    assert gpu.main() == 1
    kept = json.loads((gpu.RESULTS / "gpu.json").read_text())
    assert [step["status"] for step in kept["steps"]] == [1, 0] and kept["tests"] == {}
    assert not (gpu.RESULTS / "kernels-cuda.json").exists()


def test_both_limits_together_stay_below_eight_minutes(gpu: ModuleType) -> None:
    assert gpu.TESTS_S + gpu.BENCH_S <= 8 * 60 - 15
