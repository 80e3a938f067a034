"""Accepts connections, no more than there is room for.

asyncio's own server accepts all that come: when no more files can be opened it pauses for a second, fails, and pauses
again; and nobody counts the connections that are in their TLS handshake.
"""

import asyncio
import socket
import ssl
from collections.abc import Callable

from twofour.serve.http.connections import TimelyProtocol
from twofour.serve.http.crowd import Crowd

BATCH = 16  # connections at a time; then the event loop does other work
HANDSHAKE_S = 10.0
GOODBYE_S = 30.0  # the end of TLS, with what is still unsent
REST_S = 0.1  # a pause, when the system has no file or no memory for a connection


class Acceptor:
    """Takes the place of an `asyncio.Server`."""

    def __init__(
        self,
        listener: socket.socket,
        crowd: Crowd,
        make: Callable[[], TimelyProtocol],
        tls: ssl.SSLContext | None,
    ) -> None:
        self._listener, self._crowd, self._make, self._tls = listener, crowd, make, tls
        self._loop = asyncio.get_running_loop()
        self._arrivals: set[asyncio.Task[None]] = set()
        self._rest: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        self._go_on()

    def close(self) -> None:
        self._loop.remove_reader(self._listener)
        if self._rest:
            self._rest.cancel()
        for arrival in self._arrivals:
            arrival.cancel()

    async def wait_closed(self) -> None:
        await asyncio.gather(*self._arrivals, return_exceptions=True)

    def _go_on(self) -> None:
        self._loop.add_reader(self._listener, self._accept)

    def _accept(self) -> None:
        for _ in range(BATCH):
            try:
                connection, _ = self._listener.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as error:
                return self._wait_for_room(error)
            self._take_in(connection)

    def _wait_for_room(self, error: OSError) -> None:
        self._crowd.turn_one_out(str(error))
        self._loop.remove_reader(self._listener)
        self._rest = self._loop.call_later(REST_S, self._go_on)

    def _take_in(self, connection: socket.socket) -> None:
        protocol = self._make()
        if not self._crowd.enter(protocol):
            return connection.close()
        arrival = self._loop.create_task(self._introduce(connection, protocol))
        protocol.arrival = arrival
        self._arrivals.add(arrival)
        arrival.add_done_callback(lambda ended: self._introduced(ended, connection, protocol))

    async def _introduce(self, connection: socket.socket, protocol: TimelyProtocol) -> None:
        limits = {"ssl_handshake_timeout": HANDSHAKE_S, "ssl_shutdown_timeout": GOODBYE_S} if self._tls else {}
        await self._loop.connect_accepted_socket(lambda: protocol, connection, ssl=self._tls, **limits)

    def _introduced(self, arrival: "asyncio.Task[None]", connection: socket.socket, protocol: TimelyProtocol) -> None:
        """A connection whose handshake failed is given up; the reason interests nobody."""
        self._arrivals.discard(arrival)
        if arrival.cancelled() or arrival.exception():
            self._crowd.leave(protocol)
            connection.close()
