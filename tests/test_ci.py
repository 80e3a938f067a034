"""What CI runs ends with the status of its tests, also where there is no time for all of them."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "run"


def status(folder: Path, make: str) -> tuple[int, str]:
    """Run it with a limit of one second and a `make` that is this script."""
    (folder / ".ci").mkdir()
    (folder / "bin").mkdir()
    script, stub = folder / ".ci" / "run", folder / "bin" / "make"
    text = SCRIPT.read_text()
    assert "LIMIT_S=2400" in text and "VLLM_S=1500" in text
    script.write_text(text.replace("LIMIT_S=2400", "LIMIT_S=1").replace("VLLM_S=1500", "VLLM_S=0"))
    stub.write_text(f"#!/bin/sh\n{make}\n")
    stub.chmod(0o755)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    ended = subprocess.run(["bash", script], capture_output=True, text=True, env={**os.environ, "PATH": path})
    return ended.returncode, ended.stderr


@pytest.mark.parametrize("slow", ["vllm", "test-vllm"])
def test_no_time_left_is_no_failure(slow: str, tmp_path: Path) -> None:
    code, said = status(tmp_path, f'test "$1" = {slow} && sleep 2; exit 0')
    assert (code, "NOT RUN: test-vllm" in said) == (0, True)


@pytest.mark.parametrize("failing", ["lint", "test-conformance", "test-vllm"])
def test_a_failure_is_one(failing: str, tmp_path: Path) -> None:
    code, _ = status(tmp_path, f'test "$1" = {failing} && exit 3; exit 0')
    assert code == 3
