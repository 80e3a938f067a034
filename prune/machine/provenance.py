"""What a result was made with: versions, the machine, the most memory that it took."""

import platform
import resource
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import twofour


def machine(device: str, threads: int) -> dict[str, Any]:
    machine = {"device": device, "threads": threads, "processor": platform.machine()}
    if device == "cpu":
        return machine
    import torch

    return {**machine, "gpu": torch.cuda.get_device_name(device)}


def versions() -> dict[str, str]:
    """Return the versions of what computes a result, by package."""
    packages = ("torch", "transformers", "tokenizers", "safetensors")
    own = {"python": platform.python_version(), "twofour": twofour.__version__}
    return own | {name: version(name) for name in packages}


def peak_memory_bytes() -> int:
    """Return the highest resident size of this process so far.

    On Linux it is read from /proc, for `getrusage` also counts the process that this one was forked from.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        (peak_kib,) = [line.split()[1] for line in status.read_text().splitlines() if line.startswith("VmHWM:")]
        return int(peak_kib) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
