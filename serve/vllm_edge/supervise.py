"""The life of vLLM's server, as its parent sees it: start, announce, watch, drain, end.

A parent and no exec, for three things that vLLM's own process cannot be asked for: /ready says 503 from the first
moment of a drain, an engine that dies ends the command with an error (vLLM may end with 0), and nothing stays behind.
"""

import asyncio
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from twofour.prune.errors import ServerError
from twofour.serve.http import notify
from twofour.serve.http.server import Signals, first_of
from twofour.serve.vllm_edge import control
from twofour.serve.vllm_edge.control import Control

END_S = 20.0  # for vLLM to end by itself when no request is left
LATE_S = 10.0  # for an API server to say that it has drained; one that hangs never says so


async def supervise(
    arguments: Sequence[str], environment: Mapping[str, str], announce: Callable[[], None], drain_s: float
) -> int:
    """The exit status: 0 after a signal, and that of vLLM where it has ended by itself. drain_s: that all of a drain
    may take."""
    signals = Signals()
    signals.install()
    async with control.listening() as (link, path):
        command = (sys.executable, "-P", "-m", "twofour.serve.vllm_edge.child", *arguments)
        told = {**environment, control.VARIABLE: path}
        # A group of its own: Ctrl-C in a terminal reaches the parent alone, and the end of all is one call.
        process = await asyncio.create_subprocess_exec(*command, env=told, stdin=-3, start_new_session=True)
        try:
            await first_of(process.wait(), signals.first.wait(), say_when_up(link, announce), feed_when_up(link))
            if process.returncode is None:
                notify.say(notify.STOPPING)
                await first_of(process.wait(), signals.second.wait(), end(process, link, drain_s + LATE_S))
                return 0
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
    return own_end(process.returncode or 0)


async def say_when_up(link: Control, announce: Callable[[], None]) -> None:
    await link.up.wait()
    announce()
    notify.say(notify.READY)
    await asyncio.Event().wait()


async def feed_when_up(link: Control) -> None:
    await link.up.wait()
    await notify.feed(lambda: link.alive)


async def end(process: asyncio.subprocess.Process, link: Control, limit_s: float) -> None:
    await first_of(link.drain(), asyncio.sleep(limit_s))
    process.terminate()
    await first_of(process.wait(), asyncio.sleep(END_S))


def own_end(status: int) -> int:
    """Nobody has asked vLLM to end: that is an error, whatever it says itself."""
    if status == 0:
        raise ServerError("vLLM has ended by itself, with status 0; its log says why, start it again")
    print(f"error: vLLM has ended by itself ({said(status)}); its log says why", file=sys.stderr)
    return status if status > 0 else 128 - status


def said(status: int) -> str:
    return f"status {status}" if status > 0 else signal.Signals(-status).name
