"""What races have decided, kept as JSON that people can read and delete: one file in the user's cache folder.

`$TWOFOUR_CACHE/kernels.json`, by default `~/.cache/twofour/kernels.json`. Verdicts are listed under the machine for
which they hold: processor, instruction set, threads, and the versions of the kernels and of torch; for a GPU also the
versions of its driver, and of the compiler and the library of its kernels. If the folder cannot be written, nothing is
raced, and the built-in verdicts hold.
"""

import hashlib
import json
import logging
import os
import re
from dataclasses import asdict, dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from twofour.prune.errors import OutputError
from twofour.prune.format.folder import write_whole
from twofour.serve.kernels import cpu
from twofour.serve.kernels.cpu import extension

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Verdict:
    """The form that a weight takes, and up to how many tokens it takes its path for few.

    `dropped`: forms that could not take part, so nothing was decided about them.
    """

    form: str
    crossover_tokens: int
    dropped: tuple[str, ...] = ()


def file() -> Path:
    """Where verdicts are kept."""
    if named := os.environ.get("TWOFOUR_CACHE"):
        return Path(named) / "kernels.json"
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache") / "twofour" / "kernels.json"


def _home() -> Path:
    """A user without one, as in a container, has a folder that nobody can write."""
    try:
        return Path.home()
    except RuntimeError:
        return Path(os.devnull)


def can_keep() -> bool:
    """Whether the result of a race now can be kept for later."""
    try:
        file().parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(file().parent, os.W_OK)


def find(machine: str, shape: str) -> Verdict | None:
    """The verdict from before; None if there is none."""
    known = _book(file()).get(machine, {}).get(shape)
    if known is None:
        return None
    try:
        return Verdict(known["form"], int(known["crossover_tokens"]), tuple(known.get("dropped", ())))
    except (AttributeError, KeyError, TypeError, ValueError):
        return None


def keep(machine: str, shape: str, verdict: Verdict, seconds: dict[str, Any]) -> None:
    """Write a verdict and the seconds behind it; what other processes have written meanwhile stays."""
    book = _book(file())
    for other, found in _read(file()).items():
        book.setdefault(other, {}).update(found)
    book.setdefault(machine, {})[shape] = {**asdict(verdict), "seconds": seconds}
    try:
        file().parent.mkdir(parents=True, exist_ok=True)
        write_whole(file(), json.dumps(book, indent=1) + "\n")
    except (OSError, OutputError) as error:
        log.warning("the choice of kernels is not kept: %s", error)


@cache
def _book(path: Path) -> dict[str, Any]:
    """The file as this process has read it: once, since every linear of a model asks."""
    return _read(path)


def _read(path: Path) -> dict[str, Any]:
    try:
        book = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read (%s); kernels are raced again", path, error)
        return {}
    return book if isinstance(book, dict) and all(isinstance(found, dict) for found in book.values()) else {}


def machine(device: torch.device) -> str:
    """The name of all on which a verdict depends, except the shape of the weight."""
    if device.type == "cuda":
        return _gpu(torch.cuda.get_device_properties(device))
    threads = torch.get_num_threads()
    return f"{_processor()}, {cpu.available()}, {threads} threads, kernels {_kernels()}, torch {torch.__version__}"


def _gpu(properties: Any) -> str:
    sparse = torch.backends.cusparselt.version()
    versions = f"cuda {torch.version.cuda}, cusparselt {sparse}, triton {_triton()}, torch {torch.__version__}"
    where = f"{properties.name}, {properties.multi_processor_count} SMs, driver {_driver()}"
    return f"{where}, kernels {_kernels()}, {versions}"


@cache
def _triton() -> str:
    try:
        return metadata.version("triton")
    except metadata.PackageNotFoundError:
        return "none"


@cache
def _driver(path: Path = Path("/proc/driver/nvidia/version")) -> str:
    """The version of the NVIDIA driver, from its kernel module: "NVRM version: ...  570.124.06  ..."."""
    try:
        words = path.read_text().partition("\n")[0].split()
    except OSError:
        return "unknown"
    return next((word for word in words if re.fullmatch(r"\d+(\.\d+)+", word)), "unknown")


@cache
def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "unknown processor")


@cache
def _kernels() -> str:
    """A digest of the compiled kernels and of the Python around them."""
    module = getattr(extension.loaded(), "__file__", None)
    sources = [*sorted(Path(__file__).parent.rglob("*.py")), *([Path(module)] if module else [])]
    digest = hashlib.sha256()
    for source in sources:
        digest.update(source.read_bytes())
    return digest.hexdigest()[:12]
