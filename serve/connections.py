"""HTTP connections as uvicorn has them, but for two things.

They end when a request's head does not arrive in time, which uvicorn waits for without limit; and what is no HTTP is
refused in OpenAI's shape, with 431 where the head is too large.
"""

import asyncio
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from twofour.serve.edge.errors import RequestError

HEAD_DEADLINE_S = 20.0


class TimelyProtocol(H11Protocol):
    """One connection. The time runs from its first moment, or from the first byte after an answer, to a whole head."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        """Called where h11 has raised, which knows the status."""
        raised = sys.exc_info()[1]
        status = raised.error_status_hint if isinstance(raised, h11.RemoteProtocolError) else 400
        body = RequestError(status, "this is no valid HTTP request; check its head and its framing").body()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        for event in (h11.Response(status_code=status, headers=headers), h11.Data(body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _watch(self) -> None:
        if self.conn.their_state is not h11.IDLE:
            self._unwatch()
        elif self._deadline is None:
            self._deadline = self.loop.call_later(HEAD_DEADLINE_S, self._too_late)

    def _unwatch(self) -> None:
        if self._deadline:
            self._deadline.cancel()
        self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        self.transport.close()
