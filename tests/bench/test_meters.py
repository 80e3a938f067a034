"""Counters of the machine, from files and a library that are laid out as the real ones."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from twofour.bench.meters import Meters, Reading, is_here, resident_bytes

NVML = r"""
static unsigned long long millijoules = 5000;
typedef struct { unsigned long long total, free, used; } memory;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 2; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **handle) { *handle = (void *)(long)(index + 1); return 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *gpu, unsigned long long *out) { *out = millijoules += 1000; return 0; }
int nvmlDeviceGetMemoryInfo(void *gpu, memory *out) { out->used = 1000 * (long)gpu; return ABSENT; }
"""


def zone(folder: Path, name: str, microjoules: int) -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "max_energy_range_uj").write_text("1000000\n")
    (folder / name / "energy_uj").write_text(f"{microjoules}\n")
    return folder / name / "energy_uj"


def test_nothing_to_read_is_none(tmp_path: Path) -> None:
    meters = Meters(tmp_path, "no-such-library.so")
    assert meters.read() == Reading() and not meters.any


def test_packages_are_added_their_parts_are_not_and_a_counter_may_begin_again(tmp_path: Path) -> None:
    first, second = zone(tmp_path, "intel-rapl:0", 900_000), zone(tmp_path, "intel-rapl:1", 100)
    zone(tmp_path, "intel-rapl:0:0", 7)
    meters = Meters(tmp_path, "no-such-library.so")
    assert meters.any and meters.read().cpu_j == 0
    first.write_text("950000")
    second.write_text("200")
    assert meters.read().cpu_j == pytest.approx(0.0501)
    first.write_text("50000")  # it has passed its range of 1 J
    assert meters.read().cpu_j == pytest.approx(0.1501)
    first.unlink()
    assert meters.read().cpu_j is None


@pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")
@pytest.mark.parametrize(("absent", "used"), [(0, 3000), (3, None)])
def test_gpus_by_the_drivers_library(tmp_path: Path, absent: int, used: int | None) -> None:
    source, library = tmp_path / "nvml.c", tmp_path / "libnvml.so"
    source.write_text(NVML.replace("ABSENT", str(absent)))
    subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source], check=True)
    meters = Meters(tmp_path, str(library))
    before, after = meters.read(), meters.read()
    assert before.gpu_j == 6 + 7 and after.gpu_j == 8 + 9
    assert before.gpu_used_bytes == used


def test_what_is_here() -> None:
    assert is_here("127.0.0.1") and is_here("localhost") and is_here("::1")
    assert not is_here("192.0.2.1") and not is_here("no such host")


def test_the_processes_of_a_port() -> None:
    """Of a parent that holds 64 MB and its child that listens, both ours; no one listens on a port that is closed."""
    child = "import socket; s = socket.create_server(('127.0.0.1', 0)); print(s.getsockname()[1], flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        own = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        assert resident_bytes(port) == pytest.approx(own, rel=0.2)
        server.communicate("")
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        assert resident_bytes(closed.getsockname()[1]) is None


def test_what_a_server_started_is_its_own() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        alone = resident_bytes(port) or 0
        hold = "held = bytearray(64 << 20); print(flush=True); input()"
        with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()
            assert (resident_bytes(port) or 0) > alone + (60 << 20)
            child.communicate(b"\n")
