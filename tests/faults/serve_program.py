"""`twofour serve` with an engine that can be hurt.

python serve_program.py '{"patience": {...}, "engine": {...}, "deadlines": {...}}' serve-arguments...

The first argument holds fields of `Patience` and of `EngineConfig` that have no flag, and seconds that a connection
may last: by phase, and `unread`.
"""

import argparse
import json
import socket
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from twofour.prune.errors import TwofourError
from twofour.serve.commands import serve as command
from twofour.serve.engine import process
from twofour.serve.engine.supervise import Patience
from twofour.serve.http import connections, listening, server

settings = json.loads(sys.argv[1])
server.serve = partial(server.serve, patience=Patience(**settings["patience"]))  # type: ignore[assignment]
unread_s = settings["deadlines"].pop("unread", connections.UNREAD_S)
connections.UNREAD_S, connections.UNREAD_OPEN_S = unread_s, 2 * unread_s
connections.DEADLINES_S.update({connections.Phase(name): s for name, s in settings["deadlines"].items()})
engine = process.ProcessEngine
process.ProcessEngine = lambda config, child: engine(  # type: ignore[assignment, misc]
    replace(config, **settings["engine"]), child=child
)


def listen(*address: Any) -> socket.socket:
    """A client that reads nothing is noticed after 64 KiB, not after the 4 MB that the system takes otherwise."""
    listener = listen_as_ever(*address)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 16)
    return listener


listen_as_ever, listening.listen = listening.listen, listen
parser = argparse.ArgumentParser()
command.add_arguments(parser)
try:
    sys.exit(command.run(parser.parse_args(sys.argv[2:]), ("-P", str(Path(__file__).with_name("hurt_child.py")))))
except TwofourError as error:
    sys.exit(f"error: {error}")
