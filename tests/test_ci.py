"""What CI runs ends with the status of its tests, also where there is no time for all of them."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent / ".ci" / "run"
LONG = ("DEPLOY_S=1800", "VLLM_S=1500")


def status(folder: Path, make: str, limit_s: int = 2) -> tuple[int, str]:
    """Run it with a short limit and a `make` that is this script. The last lines are what it has made."""
    (folder / ".ci").mkdir()
    (folder / "bin").mkdir()
    script, stub = folder / ".ci" / "run", folder / "bin" / "make"
    text = SCRIPT.read_text()
    for known in ("LIMIT_S=2400", *LONG):
        assert known in text
        text = text.replace(known, f"{known.split('=')[0]}={limit_s if known == 'LIMIT_S=2400' else 0}")
    script.write_text(text)
    stub.write_text(f'#!/bin/sh\necho "$@" >> made\n{make}\n')
    stub.chmod(0o755)
    path = f"{folder / 'bin'}:{os.environ['PATH']}"
    ended = subprocess.run(["bash", script], capture_output=True, text=True, env={**os.environ, "PATH": path})
    return ended.returncode, ended.stderr + (folder / "made").read_text()


@pytest.mark.parametrize("slow", ["vllm", "test-vllm", "test-deploy"])
def test_no_time_left_is_no_failure(slow: str, tmp_path: Path) -> None:
    code, said = status(tmp_path, f'test "$1" = {slow} && sleep 3; exit 0')
    assert (code, f"NOT RUN: {'test-vllm' if slow == 'vllm' else slow}" in said) == (0, True)


@pytest.mark.parametrize("failing", ["lint", "test-conformance", "deploy-check", "test-deploy", "test-vllm"])
def test_a_failure_is_one(failing: str, tmp_path: Path) -> None:
    code, _ = status(tmp_path, f'test "$1" = {failing} && exit 3; exit 0', limit_s=60)
    assert code == 3


@pytest.mark.parametrize("lacking", ["deploy-tools", "deploy-judges"])
def test_without_its_tools_deploy_is_said_not_to_have_run(lacking: str, tmp_path: Path) -> None:
    code, said = status(tmp_path, f'test "$1" = {lacking} && exit 1; exit 0', limit_s=60)
    assert (code, "NOT RUN: deploy-check and test-deploy" in said) == (0, True)
    assert "deploy-check" not in said.partition("lint")[2] and "test-vllm" in said.partition("lint")[2]
