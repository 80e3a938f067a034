import os
import platform

import pytest

from twofour.bench import hardware
from twofour.bench.hardware import Gpu, Hardware
from twofour.bench.targets import servers
from twofour.bench.targets.servers import Placement
from twofour.prune.machine import control_groups
from twofour.prune.machine.processors import usable_cpus

X86 = """processor\t: 0
model name\t: AMD EPYC 9R14
flags\t\t: fpu sse2 avx2 f16c avx512f avx512_bf16 avx512_bitalg
processor\t: 1
model name\t: another
"""
ARM = "processor\t: 0\nFeatures\t: fp asimd sve bf16 i8mm\nCPU implementer\t: 0x41\n"


def test_the_first_processor_speaks_for_all() -> None:
    assert hardware.cpu_name(X86) == "AMD EPYC 9R14"
    assert hardware.instruction_sets(X86) == ("avx2", "f16c", "avx512f", "avx512_bf16")


def test_arm_names_its_features_otherwise() -> None:
    assert hardware.instruction_sets(ARM) == ("asimd", "sve", "bf16", "i8mm")


def test_nothing_known_is_none_and_not_zero() -> None:
    assert hardware.instruction_sets("") == ()
    assert hardware.memory_bytes("") is None
    assert hardware.gpus("") == ()


def test_memory_is_in_bytes() -> None:
    assert hardware.memory_bytes("MemTotal:       24609184 kB\nMemFree: 1 kB\n") == 24609184 * 1024


def test_gpus_with_a_comma_in_the_name() -> None:
    listing = "NVIDIA H100 80GB HBM3, 81559, 550.54.15\nOdd, Card, 4096, 1.0\n"
    assert hardware.gpus(listing) == (
        Gpu("NVIDIA H100 80GB HBM3", 81559 * 2**20, "550.54.15"),
        Gpu("Odd, Card", 4096 * 2**20, "1.0"),
    )


def test_this_machine() -> None:
    here = hardware.hardware()
    assert here.cpus == len(usable_cpus()) <= (os.cpu_count() or 1)
    assert platform.machine() in here.system


def test_a_quota_leaves_fewer_cpus_than_there_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {9, 2, 3, 5, 7})
    monkeypatch.setattr(control_groups, "memory", lambda: [control_groups.Memory(4096, 0)])
    for quota, cpus in ((None, [2, 3, 5, 7, 9]), (3.0, [2, 3, 5]), (2.9, [2, 3]), (0.5, [2]), (64.0, [2, 3, 5, 7, 9])):
        monkeypatch.setattr(control_groups, "cpus", lambda quota=quota: quota)
        assert usable_cpus() == cpus
    here = hardware.hardware()
    assert (here.cpus, here.memory_bytes) == (5, 4096)
    monkeypatch.setattr(control_groups, "cpus", lambda: 3.0)
    assert servers.place(usable_cpus()) == Placement(2, (3, 5), (2,))


def test_in_a_line() -> None:
    gpu = Gpu("NVIDIA L40S", 48 * 2**30, "1")
    assert str(Hardware("Linux", "Xeon", 8, (), 32 * 2**30, (gpu,))) == "Xeon, 8 logical CPUs, 32 GiB, NVIDIA L40S"
    assert str(Hardware("Darwin", None, 8, (), None, ())) == "unknown CPU, 8 logical CPUs"


def test_versions_of_what_is_installed() -> None:
    found = hardware.versions()
    assert found["python"] == platform.python_version()
    assert found["numpy"] and found["twofour"]


def test_a_gpu_whose_driver_does_not_say_its_memory() -> None:
    assert hardware.gpus("NVIDIA GB10, [N/A], 580.95.05\n") == (hardware.Gpu("NVIDIA GB10", None, "580.95.05"),)
    assert hardware.gpus("No devices were found\n") == ()
