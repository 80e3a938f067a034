"""Holding this process to an instruction set: our kernels by their own switch, torch by the environment."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from twofour.prune.errors import InputError

# What keeps torch and oneDNN from what an older machine lacks. torch reads it once, when it is loaded.
TORCH_ENVIRONMENT = {
    "avx2": {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    "avx512": {"ATEN_CPU_CAPABILITY": "avx512", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE_VNNI"},
    "avx512bf16": {},
}


def hold_torch(isa: str) -> None:
    """Call before anything imports torch."""
    wanted = TORCH_ENVIRONMENT[isa]
    if "torch" in sys.modules and any(os.environ.get(name) != value for name, value in wanted.items()):
        setting = " ".join(f"{name}={value}" for name, value in wanted.items())
        raise InputError(f"torch is loaded already and not held to {isa}; start the process with {setting}")
    os.environ.update(wanted)


def torch_environment() -> dict[str, str]:
    """What holds torch in this process, whoever has set it."""
    names = dict.fromkeys(name for wanted in TORCH_ENVIRONMENT.values() for name in wanted)
    return {name: os.environ[name] for name in names if name in os.environ}


@contextmanager
def held(isa: str | None) -> Iterator[str | None]:
    """Hold our kernels to an instruction set. Yields the reason where that is impossible, else None."""
    from twofour.serve.kernels.cpu.extension import loaded, missing

    cpu, reason = loaded(), missing()
    if cpu is None or reason:
        yield reason
        return
    if isa is not None and isa not in cpu.isas():
        yield f"this machine has no {isa}; it has {', '.join(cpu.isas())}"
        return
    before = cpu.isa()
    cpu.force(isa or before)
    try:
        yield None
    finally:
        cpu.force(before)
