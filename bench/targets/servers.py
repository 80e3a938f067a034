"""Servers that we start, pin to CPUs, freeze while another one is measured, and always stop.

A server is a process group of its own: the API process and the engine that it starts. Frozen processes ignore SIGTERM,
so they go on before they are told to end.
"""

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from twofour.bench.load.endpoint import Endpoint
from twofour.bench.targets import frozen
from twofour.prune.errors import ServerError

_URL = re.compile(r"http://127\.0\.0\.1:\d+")
_START_S = 900.0  # a large model is read from a slow disk
_STOP_S = 40.0  # the server drains for 30 s at most
_LAST_LINES = 8


@dataclass(frozen=True)
class Placement:
    """Who has which CPUs; None leaves that to the system."""

    threads: int
    server_cpus: tuple[int, ...] | None = None
    client_cpus: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Options:
    """What a server is started with, beside its model."""

    threads: int
    kernels: str = "auto"
    flags: Sequence[str] = ()


def place(cpus: Sequence[int], threads: int | None = None) -> Placement:
    """One CPU for the client, the others for the server.

    On two or fewer nobody is pinned: the server's API process would queue behind its own engine.
    """
    threads = threads or max(1, len(cpus) - 1)
    if len(cpus) < 3 or not hasattr(os, "sched_setaffinity"):
        return Placement(threads)
    return Placement(threads, tuple(cpus[1:]), tuple(cpus[:1]))


@contextmanager
def pinned(cpus: Sequence[int] | None) -> Iterator[None]:
    """Keep this thread on `cpus` for the length of a `with` block."""
    if cpus is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cpus)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def serve_command(model: str, options: Options) -> list[str]:
    command = [sys.executable, "-m", "twofour", "serve", model, "--host", "127.0.0.1", "--port", "0"]
    return [*command, "--threads", str(options.threads), "--kernels", options.kernels, *options.flags]


@contextmanager
def started(command: Sequence[str], log: Path, cpus: Sequence[int] | None = None) -> Iterator["Server"]:
    """Run a server for the length of a `with` block; it may still be loading when the block begins."""
    with log.open("wb") as sink:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, start_new_session=True
        )
    server = Server(process, log)
    try:
        if cpus is not None:
            os.sched_setaffinity(process.pid, cpus)  # what it starts inherits this
        yield server
    finally:
        server.stop()


class Server:
    def __init__(self, process: "subprocess.Popen[bytes]", log: Path) -> None:
        self._process = process
        self._log = log

    @property
    def pid(self) -> int:
        return self._process.pid

    def url(self, deadline_s: float = _START_S) -> str:
        """Wait until it is ready and return its address."""
        until = time.monotonic() + deadline_s
        while not (found := _URL.search(self._log.read_text(errors="replace"))):
            self._give_up(time.monotonic() > until)
            time.sleep(frozen.POLL_S)
        frozen.wait_until_ready(Endpoint(found[0], ""), until, self._give_up)
        return found[0]

    def freeze(self) -> None:
        frozen.freeze(self.pid)

    def awake(self, url: str) -> AbstractContextManager[None]:
        """Not frozen for the length of a `with` block, and frozen again in the end."""
        return frozen.awake(self.pid, Endpoint(url, ""), self._give_up)

    def stop(self) -> None:
        """Ask it to end, then end what is left of its process group; returns when it is gone."""
        try:
            if self._process.poll() is None:
                frozen.thaw(self.pid)
                self._process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    self._process.wait(_STOP_S)
        finally:
            frozen.signal_group(self.pid, signal.SIGKILL)
            self._process.wait()

    def _give_up(self, too_late: bool) -> None:
        status = self._process.poll()
        if status is not None:
            raise ServerError(f"the server ended with status {status}; its last words:\n{self._last_words()}")
        if too_late:
            raise ServerError(f"the server is not ready in time; its last words:\n{self._last_words()}")

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").splitlines()[-_LAST_LINES:]
        return "\n".join([*(f"  {line}" for line in lines), f"all of it: {self._log}"])
