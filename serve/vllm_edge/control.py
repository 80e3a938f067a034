"""A socket between the parent and the processes of vLLM. Both sides say words, one a line.

    from vLLM's first process    nothing: it ends, with all that it has started, when the socket ends
    from each API server         up, when it answers requests; alive, every second in which its engine answers; drained,
                                 when it has no more requests
    from the parent              drain

It is a path and no inherited descriptor: vLLM may start more API servers, which inherit nothing.
"""

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

VARIABLE = "TWOFOUR_VLLM_CONTROL"
ROOM = 70  # bytes of the folder of temporary files: the whole path of a socket has no more than 104
UP, ALIVE, DRAIN, DRAINED = b"up\n", b"alive\n", b"drain\n", b"drained\n"
SILENT_S = 5.0  # without a word that it is alive: then it is not


class Control:
    """The parent's side."""

    def __init__(self) -> None:
        self.up = asyncio.Event()  # an API server answers requests
        self._alive_at = time.monotonic()
        self._servers: dict[asyncio.StreamWriter, asyncio.Event] = {}

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        drained = asyncio.Event()
        with suppress(ConnectionError):  # it was killed before it read all that it was told
            async for word in reader:
                if word == UP:
                    self._servers[writer], self._alive_at = drained, time.monotonic()
                    self.up.set()
                elif word == ALIVE:
                    self._alive_at = time.monotonic()
                elif word == DRAINED:
                    drained.set()
        drained.set()  # it has ended
        writer.close()

    @property
    def alive(self) -> bool:
        return time.monotonic() - self._alive_at < SILENT_S

    async def drain(self) -> None:
        """Return when no API server has a request left."""
        for writer in self._servers:
            writer.write(DRAIN)
        await asyncio.gather(*(drained.wait() for drained in self._servers.values()))


@asynccontextmanager
async def listening() -> AsyncIterator[tuple[Control, str]]:
    """The control and the path of its socket, in a folder that nobody else can look into."""
    home = tempfile.gettempdir()
    folder = tempfile.mkdtemp(prefix="twofour-", dir=home if len(os.fsencode(home)) <= ROOM else "/tmp")
    path, control = os.path.join(folder, "control"), Control()
    try:
        server = await asyncio.start_unix_server(control.serve, path)
        try:
            yield control, path
        finally:
            server.close()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
