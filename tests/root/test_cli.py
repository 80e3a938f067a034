"""The command: light to start, clear when it fails."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from twofour import __version__, cli


def run(*words: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-m", "twofour", *words], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("words", [["--help"], ["serve", "--help"], ["eval", "--help"]])
def test_help_imports_nothing_heavy(words: list[str]) -> None:
    code = (
        "import sys; from twofour import cli\n"
        f"try: cli.main({words})\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'fastapi'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_names_every_verb() -> None:
    assert all(verb in run("--help").stdout for verb in cli.VERBS)


def test_version() -> None:
    assert run("--version").stdout.strip() == f"twofour {cli.version(cli.COMMIT)}"


def test_the_version_names_the_commit_where_the_build_knew_it(tmp_path: Path) -> None:
    (tmp_path / "commit.txt").write_text("0123456789ab+\n")
    assert cli.version(tmp_path / "commit.txt") == f"{__version__} (0123456789ab+)"
    assert cli.version(tmp_path / "none.txt") == __version__


@pytest.mark.parametrize("verb", list(cli.VERBS))
def test_every_verb_explains_itself(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([verb, "--help"])
    assert ended.value.code == 0
    assert verb in capsys.readouterr().out


def test_an_error_is_one_line_and_status_1(tmp_path: Path) -> None:
    done = run("check", str(tmp_path))
    assert done.returncode == 1 and "no config.json" in done.stdout
    done = run("convert", str(tmp_path), "-o", str(tmp_path / "out"), "--to", "dense")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ") and done.stderr.count("\n") == 1 and "Traceback" not in done.stderr


def test_an_interrupt_while_it_starts_gives_no_traceback() -> None:
    def interrupted() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        os.kill(os.getpid(), signal.SIGINT)  # it waits, as one that came while Python started again

    words = [sys.executable, "-m", "twofour", "bench", "run", "http://127.0.0.1:1"]
    done = subprocess.run(words, preexec_fn=interrupted, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (130, "")


def test_an_interrupt_while_a_verb_is_read_gives_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def import_module(name: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "import_module", import_module)
    assert cli.main(["bench", "run", "http://127.0.0.1:1"]) == 130


def test_a_reader_that_leaves_gets_no_traceback() -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "twofour", "check", "nowhere"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()  # long before Python has started
    with process.stderr as errors:
        assert errors.read() == b""
    assert process.wait() == 141
