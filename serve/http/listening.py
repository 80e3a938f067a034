"""The socket of a server. This imports nothing slow: the user hears of a taken port before anything is loaded."""

import socket

from twofour.prune.errors import InputError


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes any free one."""
    try:
        listener = socket.create_server((host, port), family=family_of(host), backlog=2048)
    except OSError as error:
        raise taken(host, port, error) from error
    # Connections inherit it; asyncio sets it only on sockets that name their protocol. Without it every answer waits
    # 40 ms until its head is acknowledged.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def reserve(host: str, port: int) -> socket.socket:
    """A socket that has the port and does not listen: another process, which sets SO_REUSEADDR too, may."""
    place = socket.socket(family_of(host))
    try:
        place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        place.bind((host, port))
    except OSError as error:
        place.close()
        raise taken(host, port, error) from error
    return place


def family_of(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def taken(host: str, port: int, error: OSError) -> InputError:
    return InputError(f"cannot listen on {host} port {port}: {error.strerror}; choose another")
