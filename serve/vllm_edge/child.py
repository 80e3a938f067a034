"""Where vLLM's first process begins: python -m twofour.serve.vllm_edge.child ARGUMENTS-OF-VLLM'S-SERVER.

It follows its parent: should that die, even by SIGKILL, nothing of vLLM stays behind. vLLM itself would leave its
engine running.
"""

import os
import signal
import socket
import sys
import threading
import warnings

from twofour.serve.vllm_edge import control
from twofour.serve.vllm_edge.choice import has_command


def main() -> None:
    follow_parent(os.environ[control.VARIABLE])
    if has_command():
        from vllm.entrypoints.cli.main import main as run
    else:
        warnings.filterwarnings("ignore", "`?vllm.entrypoints.openai.api_server", DeprecationWarning)
        from vllm.entrypoints.launchers.api_server.entry import main as run
    sys.argv[0] = "vllm"
    run()


def follow_parent(path: str) -> None:
    parent = socket.socket(socket.AF_UNIX)
    parent.connect(path)
    threading.Thread(target=end_with, args=(parent,), daemon=True).start()


def end_with(parent: socket.socket) -> None:
    while parent.recv(64):
        pass
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
