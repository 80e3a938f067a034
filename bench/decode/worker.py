"""An arm's process, seen from the parent: a question is a line of JSON, and so is its answer.

Between two questions it waits for its pipe, and takes no processor.
"""

import json
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from twofour.bench.targets.frozen import signal_group
from twofour.prune.errors import ServerError

_STOP_S = 10.0
_LAST_LINES = 8


class Worker:
    """Used as a context manager, which ends the process, and those that it has started."""

    def __init__(self, name: str, command: Sequence[str], log: Path) -> None:
        self.name, self._log = name, log
        with log.open("wb") as sink:
            self._process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=sink, start_new_session=True
            )

    @property
    def group(self) -> int:
        """Its process group, which has the number of its first process."""
        return self._process.pid

    def ask(self, what: str, **more: Any) -> dict[str, Any]:
        """Raises ServerError, with its last words, for a process that has ended or cannot answer."""
        assert self._process.stdin and self._process.stdout
        with suppress(BrokenPipeError):  # it has ended: there is no answer
            self._process.stdin.write(json.dumps({"what": what, **more}).encode() + b"\n")
            self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            raise ServerError(f"{self.name} has ended; its last words:\n{self._last_words()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise ServerError(f"{self.name}: {answer['error']}")
        return answer

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        """The end of its questions is its end."""
        assert self._process.stdin and self._process.stdout
        signal_group(self.group, signal.SIGCONT)
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_STOP_S)
        signal_group(self.group, signal.SIGKILL)
        self._process.wait()
        self._process.stdout.close()

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        return "\n".join(f"  {line}" for line in lines)
