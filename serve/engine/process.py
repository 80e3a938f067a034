"""The API process's side of the engine process: start it, talk to it, notice its death.

Two threads for each life of the engine process keep the event loop free. The reader waits for what the engine sends,
and ends with it. The writer sends; it may have to wait when a message is too large for the pipe and the engine is busy.
"""

import asyncio
import contextlib
import math
import signal
import socket
import subprocess
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Sequence
from multiprocessing.connection import Connection
from queue import SimpleQueue
from threading import Thread
from time import monotonic

from twofour.prune.errors import ServerError
from twofour.serve.engine.messages import (
    Cancel,
    Command,
    Report,
    decode_news,
    decode_start,
    encode,
    encode_command,
)
from twofour.serve.engine.types import EngineConfig, EngineInfo, Finish, Piece, Prompt, Stats, StepRecord

STALE_S = 10.0  # the engine is not ready if its heartbeat is older than this and than the step under way explains
SLACK = 5  # a step may take this many times the time of earlier steps of its size
STOP_S = 5.0
STEPS_KEPT = 10_000
CHILD = ("-P", "-m", "twofour.serve.engine.child")


class Pieces(AsyncIterator[Piece]):
    """The pieces of one prompt, up to the one with a finish. Closed or dropped before that, it cancels."""

    def __init__(self, arrivals: asyncio.Queue[Piece], cancel: Callable[[], None]) -> None:
        self._arrivals, self._cancel = arrivals, cancel
        self._ended = False

    async def __anext__(self) -> Piece:
        if self._ended:
            raise StopAsyncIteration
        piece = await self._arrivals.get()
        self._ended = piece.finish is not None
        return piece

    async def aclose(self) -> None:
        if not self._ended:
            self._ended = True
            self._cancel()

    def __del__(self) -> None:
        if not self._ended:
            self._cancel()


class ProcessEngine:
    """An `Engine` in a process of its own. After its death `start` may be called again."""

    def __init__(
        self, config: EngineConfig, clock: Callable[[], float] = monotonic, child: Sequence[str] | None = None
    ) -> None:
        self._config, self._clock = config, clock
        self._child = child or CHILD
        self._process: subprocess.Popen[bytes] | None = None
        self._outbox: SimpleQueue[Command | None] = SimpleQueue()
        self._started: asyncio.Future[EngineInfo] | None = None
        self._gone = asyncio.Event()
        self._ending = ""
        self._lives = 0
        self._info: EngineInfo | None = None
        self._stats = Stats()
        self._arrivals: dict[str, asyncio.Queue[Piece]] = {}  # pieces of the sequences that have not ended
        self._heard_at = clock()
        self._begun = 0  # tokens of the step under way, or 1 if their number is not known; 0: there is none
        self.steps: deque[StepRecord] = deque(maxlen=STEPS_KEPT)
        self.step_sizes: Counter[int] = Counter()

    @property
    def info(self) -> EngineInfo:
        if self._info is None:
            raise ServerError("the engine is not loaded; wait until it is ready")
        return self._info

    @property
    def stats(self) -> Stats:
        return self._stats

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process else None

    @property
    def healthy(self) -> bool:
        return self._process is not None

    @property
    def ready(self) -> bool:
        return self.healthy and self._info is not None and not self._stale

    @property
    def stalled(self) -> bool:
        return self._info is not None and self._stale

    @property
    def heartbeat_age_s(self) -> float:
        return self._clock() - self._heard_at

    @property
    def restarts(self) -> int:
        return max(0, self._lives - 1)

    @property
    def step_limit_s(self) -> float:
        if not self._begun:
            return 0.0
        warm_step = self._info.warm_step if self._info else None
        return SLACK * expected_s(self._begun, [*([warm_step] if warm_step else []), *self.steps])

    @property
    def _stale(self) -> bool:
        age_s = self.heartbeat_age_s
        return age_s >= STALE_S and age_s >= self.step_limit_s

    async def start(self) -> None:
        """Start the process; return when its model is loaded."""
        if self._process:
            raise ServerError("the engine runs already")
        loop = asyncio.get_running_loop()
        self._started, self._gone, self._outbox = loop.create_future(), asyncio.Event(), SimpleQueue()
        self._lives, self._info = self._lives + 1, None
        self._process, pipe = _spawn(self._child)
        Thread(target=self._read, args=(pipe, self._process, self._outbox, loop), daemon=True).start()
        try:
            self._info = await self._started
        except BaseException:
            await self.stop()
            raise

    def submit(self, prompt: Prompt) -> Pieces:
        """Queue a prompt. Closing or dropping its pieces early cancels it."""
        if not self.ready:
            raise ServerError("the engine is not ready")
        if prompt.id in self._arrivals:
            raise ServerError(f"a sequence {prompt.id} runs already")
        arrivals = self._arrivals[prompt.id] = asyncio.Queue()
        self._outbox.put(prompt)
        return Pieces(arrivals, lambda: self._cancel(prompt.id))

    async def stop(self) -> None:
        """End the process; sequences that have not ended get an error."""
        if not self._process:
            return
        self._outbox.put(None)
        if self._info:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._gone.wait(), STOP_S)
        self.kill()  # it is still loading, hangs, or is in a very long step
        await self._gone.wait()

    async def death(self) -> str:
        await self._gone.wait()
        return self._ending

    def kill(self) -> None:
        if self._process:
            self._process.kill()

    def _cancel(self, id: str) -> None:
        if self._arrivals.pop(id, None):
            self._outbox.put(Cancel(id))

    def _read(
        self,
        pipe: Connection,
        process: subprocess.Popen[bytes],
        outbox: "SimpleQueue[Command | None]",
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        """The reader thread: give what arrives to the event loop, until the engine closes its end."""
        writer = Thread(target=_write, args=(pipe, self._config, outbox), daemon=True)
        writer.start()
        with contextlib.suppress(EOFError, OSError):
            _post(loop, self._loaded, decode_start(pipe.recv_bytes()))
            while True:
                _post(loop, self._deliver, decode_news(pipe.recv_bytes()))
        status = _wait(process)
        outbox.put(None)
        writer.join()
        pipe.close()
        _post(loop, self._died, status)

    def _loaded(self, answer: EngineInfo | str) -> None:
        self._heard_at = self._clock()
        if self._started and not self._started.done():
            if isinstance(answer, str):
                self._started.set_exception(ServerError(answer))
            else:
                self._started.set_result(answer)

    def _deliver(self, news: Report | int) -> None:
        self._heard_at = self._clock()
        if isinstance(news, int):
            self._begun = news
        else:
            self._report(news)

    def _report(self, report: Report) -> None:
        self._stats, self._begun = report.stats, int(report.stats.running + report.stats.waiting > 0)
        if report.step:
            self.steps.append(report.step)
            self.step_sizes[report.step.tokens] += 1
        for piece in report.pieces:
            arrivals = self._arrivals.pop(piece.id, None) if piece.finish else self._arrivals.get(piece.id)
            if arrivals:
                arrivals.put_nowait(piece)

    def _died(self, status: int) -> None:
        why = self._ending = f"the engine process ended ({_ending(status)})"
        self._process, self._info, self._stats, self._begun = None, None, Stats(), 0
        if self._started and not self._started.done():
            self._started.set_exception(ServerError(f"{why} while it loaded the model"))
        for id, arrivals in self._arrivals.items():
            arrivals.put_nowait(Piece(id, finish=Finish.ERROR, error=why))
        self._arrivals.clear()
        self._gone.set()


def expected_s(tokens: int, measured: Sequence[StepRecord]) -> float:
    """How long a step of `tokens` tokens takes: the 99th percentile of the steps with at least as many.

    If all had fewer: the time of the largest, in proportion. The very first step may take any time.
    """
    if not measured:
        return math.inf
    if as_large := sorted(step.seconds for step in measured if step.tokens >= tokens):
        return as_large[len(as_large) * 99 // 100]
    largest = max(measured, key=lambda step: step.tokens)
    return largest.seconds * tokens / largest.tokens


def _spawn(child: Sequence[str]) -> tuple["subprocess.Popen[bytes]", Connection]:
    """Start the engine process with its end of a socket pair. Its standard output goes to standard error."""
    here, there = socket.socketpair()
    with there:
        command = [sys.executable, *child, str(there.fileno())]
        process = subprocess.Popen(command, pass_fds=[there.fileno()], stdin=subprocess.DEVNULL, stdout=2)
    return process, Connection(here.detach())


def _write(pipe: Connection, config: EngineConfig, outbox: "SimpleQueue[Command | None]") -> None:
    """The writer thread: the configuration, then commands up to None, which stops the engine."""
    with contextlib.suppress(OSError):  # the engine is gone, which the reader notices, too
        pipe.send_bytes(encode(config))
        while command := outbox.get():
            pipe.send_bytes(encode_command(command))
        pipe.send_bytes(encode_command(None))


def _wait(process: "subprocess.Popen[bytes]") -> int:
    try:
        return process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _post(loop: asyncio.AbstractEventLoop, function: Callable[..., None], argument: object) -> None:
    with contextlib.suppress(RuntimeError):  # the loop is closed
        loop.call_soon_threadsafe(function, argument)


def _ending(status: int) -> str:
    return f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
