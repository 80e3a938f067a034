"""Counters of this machine: the energy of its GPUs and CPU packages, memory in use on its GPUs, and of a server's
processes.

Energy is that of the whole machine, by counters that never go back: the driver's (NVML) and the CPU's own (RAPL, which
begins again at 0 now and then). What cannot be read is None: no driver, no permission, a virtual machine.
"""

import ctypes
import ipaddress
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

RAPL = Path("/sys/class/powercap")
SYSTEM = Path("/proc")
_LISTENS = "0A"  # the state of a socket, as /proc/net/tcp has it


@dataclass(frozen=True)
class Reading:
    """Joules count from an unknown beginning: only differences mean anything."""

    gpu_j: float | None = None
    cpu_j: float | None = None
    gpu_used_bytes: int | None = None


class Meters:
    """Read it more often than the CPU's counter begins again: once a minute will do."""

    def __init__(self, rapl: Path = RAPL, nvml: str = "libnvidia-ml.so.1") -> None:
        self._packages = [zone for zone in sorted(rapl.glob("intel-rapl:[0-9]*")) if zone.name.count(":") == 1]
        self._last = [_number(zone / "energy_uj") for zone in self._packages]
        self._passed_uj = 0
        self._gpus = _Gpus(nvml)

    @property
    def any(self) -> bool:
        return self.read() != Reading()

    def read(self) -> Reading:
        return Reading(self._gpus.energy_j(), self._cpu_j(), self._gpus.used_bytes())

    def _cpu_j(self) -> float | None:
        now = [_number(zone / "energy_uj") for zone in self._packages]
        if not now or None in now or None in self._last:
            return None
        for zone, before, after in zip(self._packages, self._last, now, strict=True):
            passed = (after or 0) - (before or 0)
            self._passed_uj += passed if passed >= 0 else passed + (_number(zone / "max_energy_range_uj") or 0)
        self._last = now
        return self._passed_uj / 1e6


class _Memory(ctypes.Structure):
    _fields_ = (("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong))


class _Gpus:
    """All GPUs that the driver shows, through its library; none without it."""

    def __init__(self, library: str) -> None:
        self._handles: list[ctypes.c_void_p] = []
        try:
            self._nvml = ctypes.CDLL(library)
        except OSError:
            return
        count = ctypes.c_uint()
        if self._nvml.nvmlInit_v2() or self._nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
            return
        for index in range(count.value):
            handle = ctypes.c_void_p()
            if not self._nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)):
                self._handles.append(handle)

    def energy_j(self) -> float | None:
        """Since the driver was loaded; the driver counts thousandths."""
        found = [self._energy(handle) for handle in self._handles]
        return None if not found or None in found else sum(filter(None, found)) / 1000

    def used_bytes(self) -> int | None:
        found = [self._used(handle) for handle in self._handles]
        return None if not found or None in found else sum(filter(None, found))

    def _energy(self, handle: ctypes.c_void_p) -> int | None:
        counted = ctypes.c_ulonglong()
        failed = self._nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(counted))
        return None if failed else counted.value

    def _used(self, handle: ctypes.c_void_p) -> int | None:
        memory = _Memory()
        return None if self._nvml.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) else memory.used


def is_here(host: str) -> bool:
    """Whether an address is of this machine: the loopback."""
    try:
        return ipaddress.ip_address(socket.gethostbyname(host.strip("[]"))).is_loopback
    except (OSError, ValueError):
        return host in ("::1", "[::1]")


def resident_bytes(port: int, system: Path = SYSTEM) -> int | None:
    """Of the processes that listen on a port of this machine, and of all that they started; None: none can be seen."""
    sockets = set(_listening(port, system))
    processes = {int(folder.name) for folder in system.glob("[0-9]*")}
    servers = {pid for pid in processes if sockets & set(_sockets(system / str(pid)))}
    parents = {pid: parent for pid in processes if (parent := _parent(system / str(pid))) is not None}
    family = {pid for pid in processes if servers & set(_line(pid, parents))}
    return sum(_resident(system / str(pid)) for pid in family) or None


def _listening(port: int, system: Path) -> Iterator[str]:
    """The sockets, as the links of open files name them."""
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for words in map(str.split, (system / "net" / table).read_text().splitlines()[1:]):
                if words[3] == _LISTENS and int(words[1].rpartition(":")[2], 16) == port:
                    yield f"socket:[{words[9]}]"


def _sockets(process: Path) -> Iterator[str]:
    with suppress(OSError):  # another user's, or it has ended
        for file in (process / "fd").iterdir():
            with suppress(OSError):
                yield str(file.readlink())


def _parent(process: Path) -> int | None:
    with suppress(OSError, ValueError, IndexError):
        return int((process / "stat").read_text().rpartition(")")[2].split()[1])
    return None


def _line(pid: int, parents: dict[int, int]) -> Iterator[int]:
    """A process, its parent, and so on."""
    while pid:
        yield pid
        pid = parents.get(pid, 0)


def _resident(process: Path) -> int:
    with suppress(OSError, ValueError, IndexError):
        return int((process / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return 0


def _number(file: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(file.read_text())
    return None
