"""The engine process: `python -m twofour.serve.engine.child FD`, started and ended by `ProcessEngine`.

FD is its end of a socket pair that nobody else holds. It ends when it is told to, or when the other end is closed,
as it is when its parent dies. How the engine in it is put together: assembly/assemble.py.
"""

import gc
import io
import logging
import signal
import sys
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection

from tqdm import tqdm

from twofour.prune.errors import TwofourError
from twofour.serve.engine.assembly.assemble import start
from twofour.serve.engine.messages import Command, Report, decode_command, decode_config, encode

log = logging.getLogger(__name__)


class Lossy(io.TextIOWrapper):
    """Standard error. On a full disk words are lost, those of progress bars too, and the process goes on."""

    def write(self, text: str) -> int:
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        with suppress(OSError):
            super().flush()


def main() -> int:
    """Load, say what was loaded, serve."""
    sys.stderr = Lossy(sys.stderr.detach(), line_buffering=True, errors="backslashreplace")  # type: ignore[union-attr]
    ignore_signals()
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    tqdm.monitor_interval = 0  # bars are drawn while the model loads; later no thread is needed for them
    logging.getLogger("twofour.serve.kernels").setLevel(logging.INFO)  # a first start races them, for seconds
    logging.getLogger("twofour.serve.engine.assembly").setLevel(logging.INFO)  # which runner computes, and why
    pipe = Connection(int(sys.argv[1]))
    try:
        loop, info = start(decode_config(pipe.recv_bytes()))
    except TwofourError as error:
        return _give_up(pipe, str(error))
    except Exception as error:  # whatever a model folder can hold: the parent gets one line, the log the rest
        log.exception("the engine cannot start")
        return _give_up(pipe, f"{type(error).__name__}: {error}")
    gc.collect()
    gc.freeze()  # what is loaded stays; to look at it again would take a collection as long as many steps
    try:
        pipe.send_bytes(encode({"info": info}))
        loop.run(partial(receive, pipe), partial(send, pipe), partial(send_begun, pipe))
    except (BrokenPipeError, ConnectionResetError):
        log.warning("the server is gone; the engine ends")
    return 0


def _give_up(pipe: Connection, why: str) -> int:
    pipe.send_bytes(encode({"failed": why}))
    return 1


def ignore_signals() -> None:
    """Terminals and service managers signal all processes at once; the parent drains, then ends this one."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def receive(pipe: Connection, timeout_s: float) -> list[Command] | None:
    """Take all commands that are there, waiting for the first. None: stop, or the other end is closed."""
    commands: list[Command] = []
    try:
        while pipe.poll(0.0 if commands else timeout_s):
            command = decode_command(pipe.recv_bytes())
            if command is None:
                return None
            commands.append(command)
    except (EOFError, ConnectionResetError):
        return None
    return commands


def send(pipe: Connection, report: Report) -> None:
    pipe.send_bytes(encode({"report": report}))


def send_begun(pipe: Connection, tokens: int) -> None:
    pipe.send_bytes(encode({"begun": tokens}))


if __name__ == "__main__":
    sys.exit(main())
