"""The connections of http/, with their deadlines, in the place of those that vLLM's server would have."""

from typing import Any

from uvicorn import Config
from uvicorn.server import ServerState

from twofour.serve.http.connections import TimelyProtocol
from twofour.serve.http.crowd import Crowd, connection_limit


class Connection(TimelyProtocol):
    """asyncio accepts it before anyone is asked, and with TLS after its handshake."""

    def connection_made(self, transport: Any) -> None:
        if self._crowd.enter(self):
            super().connection_made(transport)
        else:
            transport.abort()


def use(config: Config) -> None:
    """For all connections of a server that does not listen yet."""
    crowd = Crowd(connection_limit())

    def make(config: Config, server_state: ServerState, app_state: dict[str, Any], _loop: Any = None) -> Connection:
        return Connection(crowd, config, server_state, app_state)

    config.http_protocol_class = make  # type: ignore[assignment]
    config.ws_protocol_class = None
    config.encoded_headers = [(name, value) for name, value in config.encoded_headers if name != b"server"]
