"""Other verbs of twofour, each in a process of its own, which leaves no memory behind."""

import json
import subprocess
import sys
from typing import Any

from twofour.prune.errors import ServerError


def twofour(*words: str, remedy: str = "see above") -> dict[str, Any]:
    """Run a verb with --json and return its document. Raises ServerError, with the remedy, where it fails."""
    command = [sys.executable, "-m", "twofour", *words, "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise ServerError(f"twofour {words[0]} ended with status {done.returncode}; {remedy}")
    document: dict[str, Any] = json.loads(done.stdout)
    return document
