"""HTTP connections as uvicorn has them, but each has a deadline at every moment.

    HEAD   nothing has arrived yet, or a part of a head
    WORK   a request is answered: the edge and the answer have deadlines of their own
    REST   answered, but the body has not ended; or closed, and the client is still sending
    IDLE   answered and done; the next request may come

In every phase a connection is cut when the client does not read what was written (UNREAD_S). uvicorn itself has a
deadline for the last phase only, and drops that one at the next byte. What is not HTTP is refused in OpenAI's shape,
with 431 where the head is too large.
"""

import asyncio
import logging
import socket
import struct
import sys
from collections.abc import Callable
from enum import Enum
from typing import Any

import h11
from uvicorn import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from twofour.serve.edge.errors import RequestError
from twofour.serve.edge.ids import choose_id, identify
from twofour.serve.http.crowd import Crowd

log = logging.getLogger(__name__)


class Phase(Enum):
    HEAD = "head"
    WORK = "work"
    REST = "rest"
    IDLE = "idle"


DEADLINES_S = {
    Phase.HEAD: 20.0,
    Phase.REST: 30.0,  # as long as a body has
    Phase.IDLE: 75.0,  # longer than load balancers keep theirs (60 s): who closes last cannot lose a request
}
UNREAD_S = 30.0  # without a byte taken, once it is closed
UNREAD_OPEN_S = 60.0  # before that: a stream gives up first, and counts it
UNREAD_ALL_S = 600.0  # however slowly: as long as a request may take
LOOK_S = 0.5
AT_ONCE = struct.pack("ii", 1, 0)  # SO_LINGER: the system drops what it still holds, and resets the connection


class Lingering:
    """A transport whose `close` gives a client that is still sending the time to read its answer.

    Were it closed at once, the system would answer the next bytes with a reset, and the client could lose the answer.
    """

    def __init__(
        self, transport: asyncio.Transport, still_sending: Callable[[], bool], settle: Callable[[], None]
    ) -> None:
        self._transport, self._still_sending, self._settle = transport, still_sending, settle
        self._lingers = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def is_closing(self) -> bool:
        return self._lingers or self._transport.is_closing()

    def close(self) -> None:
        if self.is_closing():
            return
        if self._still_sending():
            self._linger()
        else:
            self._transport.close()
        self._settle()

    def close_now(self) -> None:
        self._transport.close()
        self._settle()

    def _linger(self) -> None:
        self._lingers = True
        self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()


class TimelyProtocol(H11Protocol):
    arrival: "asyncio.Task[None]"  # until there is a transport
    transport: Any
    _phase: Phase | None = None
    _deadline: asyncio.TimerHandle | None = None
    _next_look: asyncio.TimerHandle | None = None

    def __init__(self, crowd: Crowd, config: Config, server_state: ServerState, app_state: dict[str, Any]) -> None:
        super().__init__(config, server_state, app_state)
        self._crowd = crowd

    def connection_made(self, transport: Any) -> None:
        lingering: Any = Lingering(transport, self._still_sending, self._settle)
        super().connection_made(lingering)
        # Writers wait while more than this is unsent. Not 0: with TLS that is never reached.
        transport.set_write_buffer_limits(high=1)
        self._settle()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing() or self.conn.their_state is h11.MUST_CLOSE:
            return  # nobody reads what comes after the last request of a connection
        super().data_received(data)
        self._settle()

    def eof_received(self) -> None:
        """A client that closes its sending half counts as gone; most proxies see it so, too."""
        self.transport.close_now()

    def handle_events(self) -> None:
        self.app_state = {**self.app_state, "crowded": self._crowd.over}
        super().handle_events()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._unset_keepalive_if_required()  # uvicorn's own, which the deadlines here replace
        self._settle()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._start_looking()
        self._settle()

    def resume_writing(self) -> None:
        self._stop_looking()
        super().resume_writing()
        self._settle()

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.leave(self)
        self._unset_deadline()
        self._stop_looking()
        super().connection_lost(exc)

    def shutdown(self) -> None:
        super().shutdown()
        if self.transport.is_closing():
            self.transport.close_now()

    def turn_out(self) -> None:
        """Make room for another connection."""
        if self.transport is None:
            self.arrival.cancel()
        else:
            self.transport.abort()

    def send_400_response(self, msg: str) -> None:
        """Called where h11 has raised; its error knows the status. The fault is the client's: never 5xx."""
        raised = sys.exc_info()[1]
        hint = raised.error_status_hint if isinstance(raised, h11.RemoteProtocolError) else 400
        if self.cycle is not None:  # it may have the head of this request, whose body has gone wrong
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._refuse(hint if hint < 500 else 400)
        self.transport.close()

    def _refuse(self, status: int) -> None:
        request_id = self._request_id()
        log.warning("request %s of %s is refused with %d: it is no valid HTTP", request_id, self.client, status)
        body = RequestError(status, "this is no valid HTTP request; check its head and its framing").body()
        headers = [("content-type", "application/json"), ("content-length", str(len(body))), ("connection", "close")]
        headers.append(("x-request-id", request_id))
        for event in (h11.Response(status_code=status, headers=headers), h11.Data(body), h11.EndOfMessage()):
            self.transport.write(self.conn.send(event) or b"")

    def _request_id(self) -> str:
        """A new one, or that of the request whose body is wrong: the access log has it, or will."""
        if self.cycle is None or self.cycle.response_complete:
            return choose_id(None)
        scope: Any = self.cycle.scope
        return identify(scope)

    def _still_sending(self) -> bool:
        return self.conn.their_state in (h11.SEND_BODY, h11.ERROR)

    def _phase_now(self) -> Phase:
        if self.transport.is_closing():
            return Phase.REST
        if self.cycle is not None and not self.cycle.response_complete:
            return Phase.WORK
        if self.conn.their_state is h11.SEND_BODY:
            return Phase.REST
        return Phase.IDLE if self.cycle is not None and not self.conn.trailing_data[0] else Phase.HEAD

    def _settle(self) -> None:
        """After every event: set the deadline, and who waits for whom. A phase that goes on keeps its deadline."""
        phase = self._phase_now()
        if phase is not self._phase:
            self._phase = phase
            self._unset_deadline()
            if phase in DEADLINES_S:
                self._deadline = self.loop.call_later(DEADLINES_S[phase], self._too_late)
        if phase is Phase.WORK and self.conn.their_state is not h11.SEND_BODY and not self.flow.write_paused:
            self._crowd.works_for(self)
        else:
            self._crowd.waits_for(self)

    def _unset_deadline(self) -> None:
        if self._deadline:
            self._deadline.cancel()
        self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        self.transport.close_now()
        if self._next_look is None:  # too few bytes are left for a pause
            self._start_looking()

    def _start_looking(self) -> None:
        now = self.loop.time()
        self._look(self.transport.get_write_buffer_size(), now, now)

    def _look(self, left: int, since: float, began: float) -> None:
        """Cut the connection if its last `left` bytes have been waiting for too long."""
        size, now = self.transport.get_write_buffer_size(), self.loop.time()
        if size != left:
            left, since = size, now
        patience_s = UNREAD_S if self.transport.is_closing() else UNREAD_OPEN_S
        if now - since >= patience_s or now - began >= UNREAD_ALL_S:
            self._next_look = None
            return self._cut()
        self._next_look = self.loop.call_later(LOOK_S, self._look, left, since, began)

    def _cut(self) -> None:
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        self.transport.abort()

    def _stop_looking(self) -> None:
        if self._next_look:
            self._next_look.cancel()
        self._next_look = None
