"""What machine this is and which versions run on it. Reads files, asks nvidia-smi, imports no torch."""

import platform
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from itertools import pairwise
from pathlib import Path
from typing import Any

from twofour.bench.load.wire import shown
from twofour.prune.machine import control_groups
from twofour.prune.machine.processors import usable_cpus

# The instruction sets that decide which kernels can run, as Linux spells them on x86-64 and ARM.
_ISA = (
    *("avx2", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx512_vbmi", "avx512_bf16"),
    *("avx_vnni", "amx_bf16", "amx_int8", "asimd", "sve", "sve2", "bf16", "i8mm"),
)
_PACKAGES = ("twofour", "torch", "transformers", "tokenizers", "numpy", "uvloop")
_QUERY = ("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader,nounits")
_QUERY_S = 20


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_bytes: int | None  # None: the driver does not say, as the GPU shares the machine's
    driver: str


@dataclass(frozen=True)
class Hardware:
    """None: this system does not say."""

    system: str
    cpu: str | None
    cpus: int  # logical CPUs that this process may use, within its quota: what a cloud sells as vCPUs
    isa: tuple[str, ...]
    memory_bytes: int | None
    gpus: tuple[Gpu, ...]

    def __str__(self) -> str:
        memory = f", {self.memory_bytes / 2**30:.0f} GiB" if self.memory_bytes else ""
        gpus = "".join(f", {gpu.name}" for gpu in self.gpus)
        return f"{self.cpu or 'unknown CPU'}, {self.cpus} logical CPUs{memory}{gpus}"

    def as_dict(self) -> dict[str, Any]:
        """Plain data for JSON, with what a person reads."""
        return asdict(self) | {"summary": str(self)}


def hardware() -> Hardware:
    cpuinfo, installed = _text(Path("/proc/cpuinfo")), memory_bytes(_text(Path("/proc/meminfo")))
    limits = [each.limit for each in control_groups.memory()]
    return Hardware(
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu_name(cpuinfo),
        cpus=len(usable_cpus()),
        isa=instruction_sets(cpuinfo),
        memory_bytes=min(filter(None, [installed, *limits]), default=None),
        gpus=gpus(_nvidia_smi()),
    )


def versions(*more: str) -> dict[str, str | None]:
    """Of python and the packages that a result depends on, and of `more`; None: not installed."""
    return {"python": platform.python_version(), **{name: _version(name) for name in (*_PACKAGES, *more)}}


def command_line() -> list[str]:
    """This command as a result may keep it: without passwords and keys in addresses, and values of headers."""
    words = ["twofour", *map(shown, sys.argv[1:])]
    return [_without_value(before, word) for before, word in pairwise([words[0], *words])]


def _without_value(before: str, word: str) -> str:
    """Of `--header NAME=VALUE`, and of `--header=NAME=VALUE`."""
    found = re.match(r"--header=[^=]*=" if before != "--header" else r"[^=]*=", word)
    return f"{found[0]}..." if found else word


def provenance(*more: str) -> dict[str, Any]:
    """What a result was made by, and on: this command, the versions of packages and of `more`, this machine."""
    return {"command": command_line(), "versions": versions(*more), "hardware": hardware().as_dict()}


def circumstances(*more: str) -> dict[str, Any]:
    """The same, and that the measurement begins now."""
    return {"started": datetime.now(UTC).isoformat(timespec="seconds"), **provenance(*more)}


def cpu_name(cpuinfo: str) -> str | None:
    return _field(cpuinfo, "model name") or platform.processor() or None


def instruction_sets(cpuinfo: str) -> tuple[str, ...]:
    flags = (_field(cpuinfo, "flags") or _field(cpuinfo, "Features") or "").split()
    return tuple(name for name in _ISA if name in flags)


def memory_bytes(meminfo: str) -> int | None:
    total = _field(meminfo, "MemTotal")
    return int(total.split()[0]) * 1024 if total else None


def gpus(listing: str) -> tuple[Gpu, ...]:
    rows = [[cell.strip() for cell in line.rsplit(",", 2)] for line in listing.splitlines()]
    return tuple(
        Gpu(name, int(mebibytes) * 2**20 if mebibytes.isdecimal() else None, driver)
        for name, mebibytes, driver in (row for row in rows if len(row) == 3)
    )


def _field(text: str, name: str) -> str | None:
    """The first `name : value` of a file like /proc/cpuinfo."""
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon and key.strip() == name:
            return value.strip()
    return None


def _text(path: Path) -> str:
    return path.read_text() if path.is_file() else ""


def _nvidia_smi() -> str:
    try:
        asked = subprocess.run(_QUERY, capture_output=True, text=True, timeout=_QUERY_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""  # no NVIDIA driver, or one that does not answer
    return asked.stdout


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
