"""HTTP connections as uvicorn has them, but for three things.

They end when a request's head does not arrive in time, which uvicorn waits for without limit; and they end, once they
are closed, when nobody takes what was written, which would otherwise be kept for as long as the client likes. What is
no HTTP is refused in OpenAI's shape, with 431 where the head is too large.
"""

import asyncio
import socket
import struct
import sys
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from twofour.serve.edge.errors import RequestError

HEAD_DEADLINE_S = 20.0
UNREAD_S = 30.0  # without a byte taken
LOOK_S = 0.5
AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: the system drops what it holds, too, and tells the client


class TimelyProtocol(H11Protocol):
    """One connection. The time runs from its first moment, or from the first byte after an answer, to a whole head."""

    _deadline: asyncio.TimerHandle | None = None
    _next_look: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=1)  # whoever writes waits while more is left; 0 is never over with TLS
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._unwatch()
        self._look_no_more()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._look(self.transport.get_write_buffer_size(), self.loop.time())

    def resume_writing(self) -> None:
        self._look_no_more()
        super().resume_writing()

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

    def _look(self, left: int, since: float) -> None:
        """Cut the connection if it is closed and its last `left` bytes have been waiting for too long."""
        size, now = self.transport.get_write_buffer_size(), self.loop.time()
        if size != left:
            left, since = size, now
        elif self.transport.is_closing() and now - since >= UNREAD_S:
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
            return self.transport.abort()
        self._next_look = self.loop.call_later(LOOK_S, self._look, left, since)

    def _look_no_more(self) -> None:
        if self._next_look:
            self._next_look.cancel()
        self._next_look = None
