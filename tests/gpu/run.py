"""Everything that needs a GPU, in at most eight minutes, offline, from the checkout, with nothing of it installed.

    python tests/gpu/run.py        (or: make gpu)

Runs the `gpu` tests, then `twofour bench kernels --device cuda`; a step that fails does not stop the next. Writes
bench/results/gpu.json (what ran, on what, each test's outcome) and bench/results/kernels-cuda.json (the figures).
Exit status 0: all passed; 1: a step failed; 3: nothing was measured, for there is no CUDA device.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
TESTS_S, BENCH_S = 240, 225  # the limits of the two steps: together below eight minutes
SHAPES, TOKENS = "llama-3.1-8b", "1,8,16,32,64,128,512,2048"
FAILED, NOTHING_MEASURED = 1, 3

PROBE = """
import json, torch
found = {"torch": torch.__version__, "cuda": torch.version.cuda, "gpu": None, "cusparselt": None, "triton": None}
if torch.cuda.is_available():
    traits = torch.cuda.get_device_properties(0)
    found |= {"gpu": traits.name, "capability": [traits.major, traits.minor]}
    found |= {"processors": traits.multi_processor_count, "cusparselt": torch.backends.cusparselt.version()}
try:
    import triton
    found["triton"] = triton.__version__
except ImportError:
    pass
print(json.dumps(found))
"""


@dataclass(frozen=True)
class Step:
    name: str
    command: Sequence[str]
    seconds: float
    status: int | None  # None: it ran past its limit


def main() -> int:
    with package() as path, tempfile.TemporaryDirectory() as out:
        environment = {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        device = json.loads(subprocess.check_output([sys.executable, "-c", PROBE], env=environment, text=True))
        say(f"on {device['gpu'] or 'no CUDA device'}, torch {device['torch']}, triton {device['triton'] or 'missing'}")
        junit, figures = Path(out, "tests.xml"), Path(out, "kernels.json")
        steps = [run("tests", test_command(junit), TESTS_S, environment)]
        if device["gpu"] is None:
            say("nothing was measured: torch finds no CUDA device here, and every gpu test was skipped")
            return FAILED if steps[0].status else NOTHING_MEASURED
        steps.append(run("bench kernels", bench_command(figures), BENCH_S, environment))
        keep(device, steps, outcomes(junit), figures)
    return FAILED if any(step.status != 0 for step in steps) else 0


@contextmanager
def package() -> Iterator[str]:
    """Lay out the package by links: root/ is twofour, the folders beside it are its sub-packages."""
    with tempfile.TemporaryDirectory() as path:
        made = Path(path, "twofour")
        made.mkdir()
        for source in (*(ROOT / "root").iterdir(), ROOT / "prune", ROOT / "serve", ROOT / "bench"):
            if source.name != "__pycache__":
                (made / source.name).symlink_to(source)
        yield path


def test_command(junit: Path) -> list[str]:
    # On an image that is not ours, warnings are for reading: they fail nothing.
    options = ["-m", "gpu", "-q", "-rs", "-W", "default", "-p", "no:cacheprovider", f"--junitxml={junit}"]
    return [sys.executable, "-m", "pytest", str(ROOT / "tests" / "gpu"), *options]


def bench_command(figures: Path) -> list[str]:
    options = [
        "--device",
        "cuda",
        "--shapes",
        SHAPES,
        "--tokens",
        TOKENS,
        "--verify-never-slower",
        "--out",
        str(figures),
    ]
    return [sys.executable, "-m", "twofour", "bench", "kernels", *options]


def run(name: str, command: Sequence[str], limit_s: float, environment: dict[str, str]) -> Step:
    say(f"{name}: {' '.join(command)}")
    start = time.perf_counter()
    try:
        status = subprocess.run(command, cwd=ROOT, env=environment, timeout=limit_s).returncode
    except subprocess.TimeoutExpired:
        status = None
    step = Step(name, command, round(time.perf_counter() - start, 1), status)
    ending = f"did not end within {limit_s} s" if status is None else f"exit status {status}"
    say(f"{name}: {ending}, {step.seconds} s")
    return step


def outcomes(junit: Path) -> dict[str, str]:
    """Each test's outcome: passed, skipped, failure or error; nothing if the tests never ended."""
    if not junit.exists():
        return {}
    cases = ElementTree.parse(junit).iter("testcase")
    return {f"{case.get('classname')}::{case.get('name')}": _outcome(case) for case in cases}


def _outcome(case: ElementTree.Element) -> str:
    found = [child.tag for child in case if child.tag in ("skipped", "failure", "error")]
    return found[0] if found else "passed"


def keep(device: dict[str, object], steps: Sequence[Step], tests: dict[str, str], figures: Path) -> None:
    RESULTS.mkdir(exist_ok=True)
    document = {"device": device, "steps": [asdict(step) for step in steps], "tests": tests}
    (RESULTS / "gpu.json").write_text(json.dumps(document, indent=1) + "\n")
    if figures.exists():
        (RESULTS / "kernels-cuda.json").write_text(figures.read_text())
    say(f"results in {RESULTS}: gpu.json" + (", kernels-cuda.json" if figures.exists() else ", and no figures"))


def say(line: str) -> None:
    print(f"gpu: {line}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
