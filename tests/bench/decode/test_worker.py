"""Questions are answered in lines; a process that ends says so with its last words, and none is left behind."""

import os
import sys
from pathlib import Path

import pytest

from twofour.bench.decode.worker import Worker
from twofour.prune.errors import ServerError

ECHO = "import sys\nfor line in sys.stdin: print(line, end='', flush=True)"


def worker(program: str, tmp_path: Path) -> Worker:
    return Worker("arm", [sys.executable, "-c", program], tmp_path / "log")


def test_a_question_gets_its_answer_and_the_end_of_questions_is_the_end(tmp_path: Path) -> None:
    with worker(ECHO, tmp_path) as arm:
        assert arm.ask("turn", steps=3) == {"what": "turn", "steps": 3}
        assert arm.ask("turn", steps=4)["steps"] == 4
    with pytest.raises(ProcessLookupError):
        os.kill(arm._process.pid, 0)


def test_a_process_that_ends_leaves_its_last_words(tmp_path: Path) -> None:
    with worker("raise SystemExit('no memory')", tmp_path) as arm, pytest.raises(ServerError, match="no memory"):
        arm.ask("load")


def test_an_error_is_told_by_name(tmp_path: Path) -> None:
    answer = "import json\ninput()\nprint(json.dumps({'error': 'it is packed'}))"
    with worker(answer, tmp_path) as arm, pytest.raises(ServerError, match="arm: it is packed"):
        arm.ask("load")
