"""llama.cpp by node-llama-cpp, whose packages carry it compiled for many processors. llama_cpp.mjs is its process."""

import json
import shutil
from pathlib import Path

from twofour.prune.errors import InputError

PACKAGE, VERSION = "node-llama-cpp", "3.22.1"
PROGRAM = Path(__file__).with_name("llama_cpp.mjs")


def command(node_folder: Path, gguf: Path, flash_attention: str, room: int) -> list[str]:
    """room: how many tokens follow a prompt. Raises as `require` does."""
    return [require(node_folder), str(PROGRAM), str(node_folder.resolve()), str(gguf), flash_attention, str(room)]


def require(folder: Path) -> str:
    """The program node, with the package in a folder.

    Raises InputError, with the remedy, where Node.js or the package is missing, or is another version.
    """
    node = shutil.which("node")
    if node is None:
        raise InputError("llama.cpp runs in Node.js, and there is no node on the PATH; install Node.js 20 or later")
    description = folder / "node_modules" / PACKAGE / "package.json"
    remedy = f'run "npm install --ignore-scripts {PACKAGE}@{VERSION}" in a folder, and give it as --node'
    if not description.is_file():
        raise InputError(f"{folder} has no {PACKAGE}; {remedy}")
    found = json.loads(description.read_text())["version"]
    if found != VERSION:
        raise InputError(
            f"{folder} has {PACKAGE} {found}, whose internals are others than those of {VERSION}; {remedy}"
        )
    return node
