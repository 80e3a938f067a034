"""A completion asked for on a socket of our own, which may be closed, or not be read."""

import json
import socket
from typing import Any


def ask(server: Any, **fields: Any) -> socket.socket:
    """A request on a socket of our own, to be closed at will."""
    connection = socket.create_connection(server.address, timeout=5)
    send_request(connection, **{"prompt": "hi", "max_tokens": 100, **fields})
    return connection


def send_request(connection: socket.socket, **fields: Any) -> None:
    body = json.dumps({"model": "m", **fields}).encode()
    head = (
        f"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    )
    connection.sendall(head.encode() + body)


def read_all(connection: socket.socket) -> str:
    with connection:
        received = b""
        while data := connection.recv(65536):
            received += data
    return received.decode()
