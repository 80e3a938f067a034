"""The tests that need a GPU: a pytest for each file, several at a time, and what became of each test."""

import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from time import monotonic
from typing import Any
from xml.etree import ElementTree

from twofour.bench.gpu.sheet import Sheet
from twofour.prune.errors import InputError

AT_ONCE = 6
ONE_TEST_S = 60
BAD = ("failure", "error")


def run(folder: Path | None, sheet: Sheet) -> None:
    """Raises InputError without tests. A row for each file; it has `failed` where a test of it did not pass."""
    files = sorted(folder.glob("test_*.py")) if folder else []
    if not files:
        raise InputError(f"{folder} holds no tests; run make gpu in a checkout")
    with ThreadPoolExecutor(AT_ONCE) as pool:
        begun = {pool.submit(_outcomes, file, sheet.until): file for file in files}
        for done in as_completed(begun):
            sheet.cell({"file": begun[done].name}, done.result)


def _outcomes(file: Path, until: float) -> dict[str, Any]:
    """What pytest reports, also of a run that had to be ended."""
    with tempfile.TemporaryDirectory() as out:
        junit = Path(out, "tests.xml")
        try:
            status = subprocess.run(_command(file, junit), timeout=max(0.0, until - monotonic())).returncode
        except subprocess.TimeoutExpired:
            return {"failed": "ended for want of time"}
        if not junit.exists():
            return {"failed": f"pytest ended with status {status} and no report"}
        return _read(junit)


def _command(file: Path, junit: Path) -> list[str]:
    # On an image that is not ours, warnings are for reading: they fail nothing.
    options = ["-m", "gpu", "-q", "-rs", "-W", "default", "-p", "no:cacheprovider", f"--junitxml={junit}"]
    limit = ["--timeout", str(ONE_TEST_S)] if importlib.util.find_spec("pytest_timeout") else []
    return [sys.executable, "-m", "pytest", str(file), *options, *limit]


def _read(junit: Path) -> dict[str, Any]:
    cases = {str(case.get("name")): case for case in ElementTree.parse(junit).iter("testcase")}
    outcomes = {name: _outcome(case) for name, case in cases.items()}
    bad = {name: outcome for name, outcome in outcomes.items() if outcome["outcome"] in BAD}
    counts = {kind: sum(each["outcome"] == kind for each in outcomes.values()) for kind in ("passed", "skipped", *BAD)}
    found: dict[str, Any] = {**counts, "seconds": sum(each["seconds"] for each in outcomes.values()), "tests": outcomes}
    return found | ({"failed": f"{len(bad)} of {len(outcomes)} tests: {_first(bad)}"} if bad else {})


def _outcome(case: ElementTree.Element) -> dict[str, Any]:
    found = [child for child in case if child.tag in ("skipped", *BAD)]
    why = {"why": (found[0].get("message") or "")[:300]} if found else {}
    return {"outcome": found[0].tag if found else "passed", "seconds": float(case.get("time") or 0), **why}


def _first(bad: Mapping[str, Mapping[str, Any]]) -> str:
    name, outcome = next(iter(bad.items()))
    return f"{name}: {outcome['why']}"
