"""The README is true: its commands run as they stand, and its numbers are those of the result file."""

import io
import json
import re
import shlex
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import pytest

from twofour import cli

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
BUSY = 3  # of bench: it ran, but the machine was too busy for the figures to count


def commands() -> list[str]:
    """The lines of the console blocks that begin with one of our verbs or curl."""
    blocks = re.findall(r"```console\n(.*?)```", README, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith(("twofour ", "curl "))]


def test_numbers_are_generated() -> None:
    blocks = re.findall(r"<!-- (twofour bench report \S+) -->\n```text\n(.*?)```", README, re.DOTALL)
    assert len(blocks) == 2
    for command, shown in blocks:
        printed = io.StringIO()
        with redirect_stdout(printed):
            assert cli.main([*shlex.split(command)[1:-1], str(ROOT / command.split()[-1])]) == 0
        assert shown == printed.getvalue()


def test_a_result_file_is_the_summary_of_a_report(tmp_path: Path) -> None:
    """The committed file has no runs left to drop: its own summary is itself."""
    result, again = ROOT / "bench" / "results" / "demo.json", tmp_path / "again.json"
    with redirect_stdout(io.StringIO()):
        assert cli.main(["bench", "report", str(result), "--summary", str(again)]) == 0
    assert again.read_text() == result.read_text()
    assert json.loads(result.read_text())["valid"] is True


@pytest.mark.parametrize("target", ["demo", "test"])
def test_make_knows_the_two_commands(target: str) -> None:
    assert f"make {target}" in README
    done = subprocess.run(["make", "--dry-run", target], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout, done.stderr


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(command: str, url: str, folder: Path) -> Iterator[None]:
    process = subprocess.Popen([sys.executable, "-m", *shlex.split(command)], cwd=folder)
    try:
        deadline_s = time.monotonic() + 120
        while not is_ready(url):
            assert process.poll() is None and time.monotonic() < deadline_s
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        assert process.wait(60) == 0


def is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/ready", timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def ask(command: str) -> None:
    """Run a curl line with Python, which is here wherever this test is."""
    words = shlex.split(command)
    url, header, body = words[1], words[words.index("-H") + 1], words[words.index("-d") + 1]
    name, _, value = header.partition(": ")
    request = urllib.request.Request(url, body.encode(), {name: value})
    with urllib.request.urlopen(request, timeout=60) as answer:
        assert json.load(answer)["choices"][0]["message"]["role"] == "assistant"


def test_commands_run_in_order(roomy_model_folder: Path, tmp_path: Path) -> None:
    """With a tiny model in the place of the demo model, which has a test of its own."""
    (tmp_path / "smol").symlink_to(roomy_model_folder)
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    lines = [line.replace("8024", str(port)) for line in commands()]
    assert lines[0] == "twofour demo-model smol"
    start = next(i for i, line in enumerate(lines) if line.startswith("twofour serve"))
    end = next(i for i, line in enumerate(lines) if i > start and str(port) not in line)
    for line in lines[1:start]:
        run(line, tmp_path)
    with serving(lines[start], url, tmp_path):
        for line in lines[start + 1 : end]:
            ask(line) if line.startswith("curl") else run(line, tmp_path)
    for line in lines[end:]:
        run(line, tmp_path)
    assert (tmp_path / "report" / "report.html").exists() and (tmp_path / "smol-zeros" / "config.json").exists()


def run(line: str, folder: Path) -> None:
    done = subprocess.run([sys.executable, "-m", *shlex.split(line)], cwd=folder, capture_output=True, text=True)
    assert done.returncode in ((0, BUSY) if " bench " in line else (0,)), f"{line}\n{done.stdout}\n{done.stderr}"
