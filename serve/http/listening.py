"""The socket of a server. This imports nothing slow: the user hears of a taken port before anything is loaded."""

import socket

from twofour.prune.errors import InputError


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        raise InputError(f"cannot listen on {host} port {port}: {error.strerror}; choose another") from error
    # Connections inherit it; asyncio sets it only on sockets that name their protocol. Without it every answer waits
    # 40 ms until its head is acknowledged.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener
